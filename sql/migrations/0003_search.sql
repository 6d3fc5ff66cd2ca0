-- Indexes behind the lists of the dashboard. Both are empty of what runs and completes without trouble, so they cost the way
-- of such a task nothing.

-- Every verb that ends a run locks its row of live first. Who has this lock therefore meets nobody who has locked attempts and
-- wants live: without it, a call under way and this migration could wait for each other.
lock table absurd.live in exclusive mode;

-- lists of what went wrong, newest first
create index attempts_unhappy on absurd.attempts (queue_id, task_id) where task_state in ('f', 'x');
-- lists of what runs: the runs without a lease, which live_lease does not hold
create index live_leaseless on absurd.live (queue_id, task_id) where state = 'r' and due_at is null;
