-- What every alias named, from when to when, and who decided it. An empty `until` means: now.
SELECT
    subject,
    body ->> 'version' AS version,
    body ->> 'replaces' AS replaces,
    at AS since,
    lead(at) OVER (PARTITION BY subject ORDER BY seq) AS until,
    actor,
    body ->> 'reason' AS reason
FROM audit_log
WHERE action = 'moved_alias'
ORDER BY seq DESC
LIMIT 200;
