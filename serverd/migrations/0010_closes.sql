-- What a close has done: one that comes again, late perhaps, does that and no more.
CREATE INDEX tunnels_closed_by ON tunnels (closed_by) WHERE closed_by IS NOT NULL;
CREATE INDEX openers_released_by ON openers (released_by) WHERE released_by IS NOT NULL;
