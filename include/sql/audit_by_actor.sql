-- Who did what, how often, and when last.
SELECT
    actor,
    action,
    count(*) AS events,
    max(at) AS last_at
FROM audit_log
GROUP BY actor, action
ORDER BY last_at DESC;
