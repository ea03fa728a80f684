-- What each day cost, and on what: the label says what the device-seconds bought.
SELECT
    substr(created_at, 1, 10) AS day,
    body ->> 'label' AS label,
    body ->> 'device' AS device,
    sum(CAST(body ->> 'usd' AS DOUBLE PRECISION)) AS usd,
    sum(CAST(body ->> 'device_seconds' AS DOUBLE PRECISION)) / 3600 AS device_hours
FROM facts
WHERE kind = 'cost'
GROUP BY 1, 2, 3
ORDER BY 1 DESC, 4 DESC;
