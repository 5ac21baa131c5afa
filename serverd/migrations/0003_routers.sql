-- What each router leads users to. A router writes it itself: before it adds a route, and once it has taken one away. So
-- whoever takes over an address knows when nobody is led to the last one there any more.
CREATE TABLE routers (
    id      text PRIMARY KEY REFERENCES identities ON DELETE CASCADE,
    -- [["<server>", "<address>"], ...]
    routes  jsonb NOT NULL,
    -- When it last looked into the registry.
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Where a server's forwards are bound; null once another has taken the address over.
ALTER TABLE servers ADD COLUMN address text;
