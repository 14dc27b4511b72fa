-- Bars that no market can have produced, kept as they came. If the database already has an object of the view's name, that object stays.

DO $$ BEGIN IF to_regclass('suspects') IS NULL THEN
    CREATE VIEW suspects AS SELECT * FROM bar_revisions
    WHERE open < low OR open > high OR close < low OR close > high OR trades < 0; END IF; END $$;
