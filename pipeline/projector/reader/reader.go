// Package reader answers questions about a projection from the partitions that this
// worker has: current and past states, events, causes, feeds, blocked aggregates. It
// also serves its part of an answer to other workers.
//
// Start at [Reader], which is a [query.Projection]. history.go reads the past, feed.go
// follows changes, and serve.go answers other workers.
//
// A Reader has no state and no locks of its own. Its methods may be called from any
// goroutine. What it reads belongs to a [projection.Set], which also says how far the
// answers reach.
package reader

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/receipt"
)

// Reader answers questions about a projection from the store. It is a
// [query.Projection].
type Reader struct {
	set        *projection.Set
	projection *projection.Projection
	fold       *fold.Fold
	cfg        Config
}

// Config describes a [Reader]. Zero values are valid.
type Config struct {
	Group string // consumer group that folds the projection
	// Upstream knows what pipelines did with an event before it came to the topic.
	Upstream *receipt.Upstream
	// Show returns what an encrypted field shows. nil means that nothing is encrypted.
	Show func(*codec.Schema, []byte) (query.Decrypted, error)
}

var _ query.Projection = (*Reader)(nil)

// New returns a reader of a projection of a set.
func New(set *projection.Set, p *projection.Projection, cfg Config) *Reader {
	return &Reader{set: set, projection: p, fold: p.Spec.Fold, cfg: cfg}
}

// Projection returns the projection that is read.
func (r *Reader) Projection() *projection.Projection { return r.projection }

// Group returns the consumer group that folds the projection.
func (r *Reader) Group() string { return r.cfg.Group }

// Topic returns the topic of the events.
func (r *Reader) Topic() string { return r.projection.Spec.Events.Name }

// NumPartitions returns the number of partitions of the topic.
func (r *Reader) NumPartitions() int { return r.projection.Spec.Events.Partitions }

// EventTypes returns the types of the events on the topic.
func (r *Reader) EventTypes() []*codec.Schema { return r.projection.Spec.Types }

// Here returns the partitions that are assigned to this worker.
func (r *Reader) Here() map[int32]bool {
	out := map[int32]bool{}
	for _, key := range r.set.Assigned() {
		if key.Topic == r.Topic() {
			out[key.Partition] = true
		}
	}
	return out
}

// Answered returns the assigned partitions from which questions are answered.
func (r *Reader) Answered() map[int32]bool {
	here, out := r.Here(), map[int32]bool{}
	for _, p := range r.set.Partitions(r.projection) {
		if here[p.Number()] {
			out[p.Number()] = true
		}
	}
	return out
}

// Offsets returns the next offset to fold, as the store has it, of each assigned
// partition from which questions are answered.
func (r *Reader) Offsets() map[int32]int64 {
	out := map[int32]int64{}
	for _, p := range r.fresh() {
		if !p.Assigned() {
			continue
		}
		if next, ok, err := p.Position(); err == nil && ok {
			out[p.Number()] = next
		}
	}
	return out
}

// CountBlocked returns the number of blocked aggregates, by partition.
func (r *Reader) CountBlocked() map[int32]int64 {
	out := map[int32]int64{}
	for _, p := range r.set.AssignedPartitions(r.projection) {
		out[p.Number()] = p.CountBlocked()
	}
	return out
}

// fresh returns the partitions from which questions are answered, in order, after it
// stored their folded events, where that is cheap.
func (r *Reader) fresh() []*projection.Partition {
	ps := r.set.Partitions(r.projection)
	for _, p := range ps {
		p.Freshen()
	}
	return ps
}

// Describe implements [query.Projection].
func (r *Reader) Describe() query.Description {
	return query.Description{Name: r.projection.Name(), Version: r.fold.Hash(), Topic: r.Topic(), Snapshots: r.projection.Spec.Snapshots, State: r.fold.State(), Decrypt: r.cfg.Show}
}

// AllPartitions implements [query.Projection], for the partitions of this worker.
func (r *Reader) AllPartitions(context.Context) ([]query.Position, map[int32]string, error) {
	return r.Partitions(), nil, nil
}

// Partitions implements [query.Projection].
func (r *Reader) Partitions() []query.Position {
	out := []query.Position{}
	for _, p := range r.fresh() {
		next, ok, err := p.Position()
		if err == nil && ok {
			out = append(out, p.At(next))
		}
	}
	return out
}

// Home returns the partition in which an aggregate most likely is.
func (r *Reader) Home(id string) int32 {
	home, _ := r.projection.Home(id)
	return home
}

// partitionsFor returns the partitions in which an aggregate may be, the likeliest
// first: the partition of its id if the events' keys are the ids, else any.
func (r *Reader) partitionsFor(id string) (ps []*projection.Partition, home int32) {
	home = r.Home(id)
	ps = r.set.Partitions(r.projection)
	for _, p := range ps {
		// If the aggregate is at home, the other partitions need not be written.
		if p.Number() == home {
			p.Freshen()
		}
	}
	i := slices.IndexFunc(ps, func(p *projection.Partition) bool { return p.Number() == home })
	if i > 0 {
		ps[0], ps[i] = ps[i], ps[0]
	}
	return ps, home
}

// notFound returns the error for an aggregate that none of the partitions has.
func (r *Reader) notFound(id string, ps []*projection.Partition, home int32) error {
	if len(ps) == 0 || ps[0].Number() != home {
		return fmt.Errorf("partition %d of %s, to which %q belongs, is not with this worker, or not ready: %w", home, r.Topic(), id, query.ErrElsewhere)
	}
	return query.ErrNotFound
}

// Get implements [query.Projection].
func (r *Reader) Get(_ context.Context, id string) (query.Aggregate, error) {
	ps, home := r.partitionsFor(id)
	for i, p := range ps {
		if i == 1 {
			r.fresh() // it is not at home: the events' keys are not the ids
		}
		v := p.View()
		var a fold.Aggregate
		ok, err := v.State([]byte(id), &a)
		next, _, err2 := v.Position()
		if err = errors.Join(err, err2, v.Close()); err != nil {
			return query.Aggregate{}, err
		}
		if ok {
			return p.Describe(id, &a, p.At(next)), nil
		}
		if p.Status(id, &a) == fold.Blocked {
			return query.Aggregate{}, fmt.Errorf("%q is blocked, and has no state yet: %w", id, query.ErrNotFound)
		}
	}
	return query.Aggregate{}, r.notFound(id, ps, home)
}

// Scan implements [query.Projection]: it merges the partitions.
func (r *Reader) Scan(ctx context.Context, after string, f func(query.Aggregate) bool) (at []query.Position, err error) {
	var scans []*scan
	defer func() {
		for _, s := range scans {
			s.stop()
			err = errors.Join(err, s.err, s.view.Close())
		}
	}()
	at = []query.Position{}
	for _, p := range r.fresh() {
		s := &scan{partition: p, view: p.View()}
		scans = append(scans, s)
		s.start(after)
		next, _, err := s.view.Position()
		if err != nil {
			return nil, err
		}
		s.at = p.At(next)
		at = append(at, s.at)
	}
	for n := 0; ; n++ {
		var first *scan
		for _, s := range scans {
			if s.ok && (first == nil || s.id < first.id) {
				first = s
			}
		}
		if first == nil {
			return at, nil
		}
		if !f(first.partition.Describe(first.id, first.a, first.at)) {
			return at, nil
		}
		if n%256 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		first.next()
	}
}

// scan is the aggregates of one partition, in order of their ids.
type scan struct {
	partition *projection.Partition
	view      *states.View
	at        query.Position
	id        string
	a         *fold.Aggregate // valid until next
	ok        bool
	err       error
	pull      func() (string, *fold.Aggregate, bool)
	stop      func()
}

func (s *scan) start(after string) {
	s.pull, s.stop = iter.Pull2(func(yield func(string, *fold.Aggregate) bool) {
		s.err = s.view.States(after, func(id []byte, a *fold.Aggregate) bool { return yield(string(id), a) })
	})
	s.next()
}

func (s *scan) next() { s.id, s.a, s.ok = s.pull() }
