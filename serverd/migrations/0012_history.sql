-- Tunnels that ended long ago are dropped, the oldest first.
CREATE INDEX tunnels_over ON tunnels (ended_at) WHERE ended_at IS NOT NULL;
-- With a tunnel goes what is left of its leases: without this index each would be looked for among all of them.
CREATE INDEX leases_of_tunnel ON leases (tunnel_id);
