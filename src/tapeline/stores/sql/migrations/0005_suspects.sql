-- Bars that no market has had, kept as they came. Where the database has something of that name already, that stays.

DO $$ BEGIN IF to_regclass('suspects') IS NULL THEN
    CREATE VIEW suspects AS SELECT * FROM bar_revisions
    WHERE open < low OR open > high OR close < low OR close > high OR trades < 0; END IF; END $$;
