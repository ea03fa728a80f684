-- Registered versions, newest first, with what made them and the aliases that name them now.
SELECT
    version.body ->> 'name' AS model,
    version.body ->> 'version' AS version,
    alias.body ->> 'alias' AS alias,
    CAST(version.body -> 'metrics' ->> 'val_loss' AS DOUBLE PRECISION) AS val_loss,
    version.body -> 'manifest' -> 'source' ->> 'commit' AS git_commit,
    version.body -> 'manifest' ->> 'dataset' AS dataset,
    version.created_at AS registered_at
FROM facts AS version
LEFT JOIN facts AS alias
    ON alias.kind = 'alias'
    AND alias.body ->> 'name' = version.body ->> 'name'
    AND alias.body ->> 'version' = version.body ->> 'version'
WHERE version.kind = 'model_version'
ORDER BY version.created_at DESC, version.key DESC, alias.key
LIMIT 200;
