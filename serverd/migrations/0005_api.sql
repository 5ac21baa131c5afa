-- When the tunnel's ssh was connected and its keys exchanged: sshd asked about it then.
ALTER TABLE tunnels ADD COLUMN landed_at timestamptz;

-- The latest tunnel to a device, also when it is over.
CREATE INDEX tunnels_latest ON tunnels (user_id, device_id, created_at DESC);
