-- Enrolment: who may make which identity, told by one-time tokens; only their SHA-256 is here.
CREATE TABLE enrolment_tokens (
    id         text PRIMARY KEY,
    hash       bytea NOT NULL UNIQUE,
    kind       text NOT NULL CHECK (kind IN ('device', 'user', 'server', 'router')),
    -- Whom it enrols; null for a fleet's token, with which devices name themselves.
    name       text,
    uses_left  integer NOT NULL CHECK (uses_left >= 0),
    -- The tags of what it enrols: an object of texts.
    tags       jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);

-- A use, by name and public key: whoever lost the answer asks again with the same key and uses nothing up.
CREATE TABLE enrolment_uses (
    token_id text NOT NULL REFERENCES enrolment_tokens ON DELETE CASCADE,
    name     text NOT NULL,
    key_hash bytea NOT NULL,
    used_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (token_id, name)
);

CREATE TABLE device_tags (
    device_id text NOT NULL REFERENCES devices ON DELETE CASCADE,
    key       text NOT NULL,
    value     text NOT NULL,
    PRIMARY KEY (device_id, key)
);
CREATE INDEX device_tags_by_value ON device_tags (key, value);

-- The public host keys of a device's own sshd, "<type> <base64>" each: users check them.
ALTER TABLE devices ADD COLUMN host_keys text[] NOT NULL DEFAULT '{}';
-- The key before the last change, good for as long as both may be in use.
ALTER TABLE devices ADD COLUMN ssh_key_before text UNIQUE;
ALTER TABLE devices ADD COLUMN ssh_key_before_until timestamptz;

-- Bearer tokens for HTTP. They act for a user, within their scopes.
CREATE TABLE api_tokens (
    id           text PRIMARY KEY,
    hash         bytea NOT NULL UNIQUE,
    user_id      text NOT NULL REFERENCES users ON DELETE CASCADE,
    scopes       text[] NOT NULL,
    note         text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    last_used_at timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX api_tokens_of_user ON api_tokens (user_id);
