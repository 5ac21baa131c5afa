-- The keys that users were last certified with, for devices whose own sshd knows no certificates: such a device asks for
-- those that are good now. A row is worth nothing without a grant.
CREATE TABLE ssh_keys (
    user_id    text NOT NULL REFERENCES users ON DELETE CASCADE,
    device_id  text NOT NULL REFERENCES devices ON DELETE CASCADE,
    -- `TYPE BASE64`
    public_key text NOT NULL,
    -- What the certificate names.
    accounts   text[] NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (device_id, user_id, public_key)
);
