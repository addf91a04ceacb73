package control

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

// A Follower follows the control topic. Its methods are safe for concurrent use.
type Follower struct {
	Tail  *kafka.Tail
	Topic string
	Log   *slog.Logger // discards

	mu      sync.Mutex
	state   *State        // guarded by mu
	changed chan struct{} // guarded by mu; closed by the next change
}

// NewFollower returns a Follower. It does nothing until [Follower.Run].
func NewFollower(cfg kafka.Config, topic string) *Follower {
	return &Follower{Tail: kafka.NewTail(cfg, topic), Topic: topic, Log: slog.New(slog.DiscardHandler), state: newState(), changed: make(chan struct{})}
}

// Run follows the topic until the context ends. It retries after other errors, with a backoff of 100 ms to 5 s, and reports
// each of them to report.
func (c *Follower) Run(ctx context.Context, report func(error)) error {
	return c.Tail.Follow(ctx, c.Apply, func(err error, _ time.Duration) { report(err) })
}

// Apply applies a record of the topic to the state.
func (c *Follower) Apply(r *pipeline.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.state.apply(r); err != nil {
		return err
	}
	if why, ok := c.state.Unreadable[string(r.Key)]; ok {
		c.Log.Error("a record of the control topic is not understood; it is skipped", "topic", r.Topic, "key", fmt.Sprintf("%.100q", r.Key), "err", why)
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// Now returns a copy of the state, and a channel that the next change closes.
func (c *Follower) Now() (*State, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.clone(), c.changed
}

// Unreadable returns the number of keys whose last record is not understood.
func (c *Follower) Unreadable() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.state.Unreadable)
}

// Ready returns nil while the topic is followed.
func (c *Follower) Ready() error {
	if err := c.Tail.Err(); err != nil {
		return fmt.Errorf("the control topic %s is not followed: %w", c.Topic, err)
	}
	return nil
}

// Workers returns a state with only the workers, which is cheaper than [Follower.Now], and a
// channel that the next change of any record closes.
func (c *Follower) Workers() (*State, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &State{Workers: maps.Clone(c.state.Workers)}, c.changed
}
