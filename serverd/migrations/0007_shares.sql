-- Until when a bearer name that was signed for the lease's port may be used: longer than other names, so that the port
-- rests for as long.
ALTER TABLE leases ADD COLUMN named_until timestamptz;
