-- An emit says who it is, so that its repeat after a lost reply is known for what it is. Every verb that locks rows of events
-- and of live comes to events first; this takes nothing but events.
alter table absurd.events add column emit_id uuid;
comment on column absurd.events.emit_id is 'the emit that gave the payload, if it said who it is: once more, it changes nothing';
