-- Since version 3: epsilon, delta and length of a budget are the terms of its window in force, and `cap` is what they admit.
-- `dpmesh ledger migrate` fills it in. The functions that begin windows and debit are made anew.

ALTER TABLE dpmesh.budgets ADD COLUMN cap bigint NOT NULL DEFAULT 0 CHECK (cap >= 0);
DROP FUNCTION dpmesh.debit(
    integer[], bigint[], integer[], bytea[], bigint[], bigint[], bigint[], bigint[], bytea, bigint, bytea, bigint, bytea, bytea
);
DROP FUNCTION dpmesh.state(integer[], integer[], bytea[]);
DROP TYPE dpmesh.answer;
