-- The dearest runs, and how much of each bought a result.
SELECT
    run,
    count(*) AS entries,
    sum(CAST(body ->> 'usd' AS DOUBLE PRECISION)) AS usd,
    sum(CASE WHEN body ->> 'label' IN ('productive', 'serving') THEN CAST(body ->> 'usd' AS DOUBLE PRECISION) ELSE 0 END)
        AS useful_usd,
    min(created_at) AS first_entry,
    max(created_at) AS last_entry
FROM facts
WHERE kind = 'cost'
GROUP BY run
ORDER BY usd DESC
LIMIT 100;
