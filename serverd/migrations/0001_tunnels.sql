-- Who there is. One namespace for all kinds: the broker knows an identity by its certificate's CN alone, so a user must
-- not be able to share the name of a device.
CREATE TABLE identities (
    name       text PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('device', 'user', 'server', 'router')),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE certificates (
    serial    text PRIMARY KEY,
    name      text NOT NULL REFERENCES identities ON DELETE CASCADE,
    not_after timestamptz NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX certificates_name ON certificates (name);

CREATE TABLE devices (
    id         text PRIMARY KEY REFERENCES identities ON DELETE CASCADE,
    -- "<type> <base64>" of the key that the device's ssh logs in with.
    ssh_key    text NOT NULL UNIQUE,
    -- Presence, ordered by the agent's connect counter: a lower generation never overwrites a higher one.
    online     boolean NOT NULL DEFAULT false,
    generation bigint NOT NULL DEFAULT 0,
    instance   text,
    last_seen  timestamptz,
    -- How often two agents with this identity have taken turns since a moment, and until when none is let in for that.
    turns             integer NOT NULL DEFAULT 0,
    turns_since       timestamptz,
    quarantined_until timestamptz
);

CREATE TABLE users (
    id text PRIMARY KEY REFERENCES identities ON DELETE CASCADE
);

-- What a user may open; null means any.
CREATE TABLE grants (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id   text NOT NULL REFERENCES users ON DELETE CASCADE,
    device_id text REFERENCES devices ON DELETE CASCADE,
    target    text,
    UNIQUE NULLS NOT DISTINCT (user_id, device_id, target)
);

CREATE TABLE servers (
    id           text PRIMARY KEY REFERENCES identities ON DELETE CASCADE,
    -- Counts starts and address changes.
    generation   bigint NOT NULL DEFAULT 0,
    -- Who runs under this id: host, boot id, process namespace, process; JSON.
    holder       text,
    state        text NOT NULL DEFAULT 'offline' CHECK (state IN ('serving', 'draining', 'offline')),
    -- Where it answers health checks.
    health       text,
    -- The signed registration as routers read it.
    registration text,
    -- Set when other servers have declared it lost, which fences it.
    lost_at      timestamptz
);

-- Apart from servers, so that a row that changes every few seconds drags nothing else along.
CREATE TABLE server_heartbeats (
    server_id  text PRIMARY KEY REFERENCES servers ON DELETE CASCADE,
    generation bigint NOT NULL,
    counter    bigint NOT NULL,
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

CREATE TABLE tunnels (
    id              uuid PRIMARY KEY,
    user_id         text NOT NULL REFERENCES users ON DELETE CASCADE,
    device_id       text NOT NULL REFERENCES devices ON DELETE CASCADE,
    target          text NOT NULL,
    remote_port     integer CHECK (remote_port BETWEEN 1 AND 65535),
    state           text NOT NULL DEFAULT 'requested'
                    CHECK (state IN ('requested', 'claimed', 'active', 'reconnecting', 'closed', 'failed')),
    -- Counts claims: the fencing token.
    epoch           bigint NOT NULL DEFAULT 0,
    -- Where it landed last.
    server_id       text REFERENCES servers,
    port            integer CHECK (port BETWEEN 1 AND 65535),
    idle_s          integer CHECK (idle_s > 0),
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Until when the asker waits: a request past it opens nothing.
    deadline_at     timestamptz NOT NULL,
    answered_at     timestamptz,
    claimed_at      timestamptz,
    active_at       timestamptz,
    expires_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    -- The request that closed it: the same one, repeated, hears the same.
    closed_by       uuid,
    -- Why it failed; of a tunnel that is active, what its device last said of the target.
    failure_kind    text,
    failure_message text,
    failed_at       timestamptz
);
CREATE INDEX tunnels_of_user ON tunnels (user_id, device_id, target)
    WHERE state IN ('requested', 'claimed', 'active', 'reconnecting');
CREATE INDEX tunnels_of_device ON tunnels (device_id)
    WHERE state IN ('requested', 'claimed', 'active', 'reconnecting');
CREATE INDEX tunnels_by_expiry ON tunnels (expires_at)
    WHERE state IN ('requested', 'claimed', 'active', 'reconnecting');
CREATE INDEX tunnels_on_server ON tunnels (server_id) WHERE state IN ('claimed', 'active');
CREATE INDEX tunnels_requested ON tunnels (deadline_at) WHERE state = 'requested';

-- Who asked for a tunnel, and where the answers go. A holder keeps it open until it gives it up.
CREATE TABLE openers (
    request_id  uuid PRIMARY KEY,
    tunnel_id   uuid NOT NULL REFERENCES tunnels ON DELETE CASCADE,
    session     text NOT NULL,
    hold        boolean NOT NULL,
    -- Until when it listens for answers.
    waits_until timestamptz NOT NULL,
    -- The request that gave it up.
    released_by uuid,
    asked_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX openers_of_tunnel ON openers (tunnel_id);

-- (server, port) -> tunnel. A released row stays until free_after, when the last name ever signed for the port has
-- expired: until then no other tunnel may have the port, lest an old name lead to it.
CREATE TABLE leases (
    server_id     text NOT NULL REFERENCES servers,
    port          integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    tunnel_id     uuid NOT NULL REFERENCES tunnels ON DELETE CASCADE,
    epoch         bigint NOT NULL,
    -- The user-side sshd process that owns the listener, told apart from a later one with its pid.
    session_pid   integer NOT NULL,
    session_start bigint NOT NULL,
    boot_id       text NOT NULL,
    claimed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at   timestamptz,
    free_after    timestamptz,
    -- Another server asks this one to end the session.
    evict         boolean NOT NULL DEFAULT false,
    PRIMARY KEY (server_id, port),
    CHECK ((released_at IS NULL) = (free_after IS NULL))
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX leases_one_live_per_tunnel ON leases (tunnel_id) WHERE released_at IS NULL;
CREATE INDEX leases_to_evict ON leases (server_id) WHERE evict;

CREATE VIEW live_leases AS
    SELECT l.server_id, l.port, l.tunnel_id, t.device_id, l.epoch, l.claimed_at
    FROM leases l JOIN tunnels t ON t.id = l.tunnel_id
    WHERE l.released_at IS NULL;
