-- What a connection received and could not keep is called `dropped` in its facts, and was called `refused`.

UPDATE tapeline_ledger_lives SET body = (body::jsonb - 'refused' || jsonb_build_object('dropped', body::jsonb -> 'refused'))::text
WHERE body::jsonb -> 'refused' IS NOT NULL;
