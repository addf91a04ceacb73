// Package projection folds partitions of events into the states of aggregates, keeps
// the states and their history in a store, and publishes snapshots of them.
//
// Start at [Set], which holds the partitions of a worker, and at [Handler], which
// folds the records of one session. track.go decides what an event does to a state.
// [Follower] folds partitions that another worker owns. [Partition] and [View] are
// the read side: package reader answers questions with them.
//
// # Recovery
//
// The store is a pure function of the log. It may be ahead of the offset that is
// committed on Kafka, or behind it, and is never rolled back. Three offsets describe a
// lane, which is one partition of one projection. Each of them is valid on its own:
//
//	next       everything below is folded, in memory
//	position   everything below is folded, in the store
//	published  everything below is in snapshots of committed transactions
//
// After a crash, position may be above published: the events between them are read
// again to find the aggregates whose snapshots are due, and are not folded. Position
// may be below published: the events between them are folded again and not published
// again.
//
// # Owners and locks
//
// A unit is one assigned partition of a topic, with a lane for each projection that
// reads the topic. One session folds a unit. Revokes, releases, erasures and readers
// come from other goroutines, so unit.mu guards the unit and everything in its lanes,
// except for fields that are marked otherwise.
//
// Locks are taken in this order:
//
//  1. unit.mu
//  2. the locks of package changes
//
// Set.mu, Handler.wakeMu, the lock of pending.Erased, the lock of query.Refusals and that of fill.Jobs may be taken at any point,
// because no other lock is taken while one of them is held. No two units are locked at the same time.
// No callback of [Config] runs while a lock is held, except for the clock (Now,
// After) and the registry, which a handler asks under unit.mu for a schema that it
// does not know.
package projection

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/changes"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/fill"
	"millrace/pipeline/projector/home"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// DefaultMemory is the default of Config.Memory, in bytes.
const DefaultMemory = 256 << 20

// Config describes a [Set]. Store, Registry, Restore and Projections are required;
// the comments of the other fields describe their zero values.
type Config struct {
	Store       *store.Store
	Registry    event.Schemas // schemas of the events
	Restore     RestoreFunc
	Projections []Spec

	// Settled reads a partition of the topics of a projection with a topic of internal
	// records, which needs it.
	Settled SettledFunc
	// Recent reads the newest records of partitions. Without it, all records are read with
	// Restore.
	Recent internalrecord.RecentFunc
	// Tail reads events again for a release, and for the history after a restore from
	// snapshots: see [Set.Fill]. Without it, nothing can be released, and the session reads
	// the log again for the history.
	Tail TailFunc
	// LogStart returns the first offset of a partition. Without it, a release does not
	// check whether events are deleted.
	LogStart func(ctx context.Context, topic string, partition int32) (int64, error)
	// Progress returns how far the reader of a partition is; zero if it is nil. It must be
	// safe for concurrent use.
	Progress func(topic string, partition int32) kafka.PartitionProgress
	// Ends asks Kafka for the end of a partition after its snapshots were read. It is
	// needed where the owner continues meanwhile, which is if Follows is set.
	Ends func(ctx context.Context, topic string, partition int32) (int64, error)
	// Hidden reports that questions about a partition must not be answered, although
	// it is assigned or (left) was assigned until a short time ago. nil hides nothing.
	// It must be safe for concurrent use.
	Hidden func(key Key, left bool) bool

	// Follows marks partitions that another worker owns: this Set publishes nothing
	// and reads the owner's snapshots topic.
	Follows bool
	// AcceptLoss continues at the start of the log if events were deleted before a
	// partition read them. The gap is part of its positions. A Set that follows continues
	// with what the owner has.
	AcceptLoss bool

	NoHistory bool        // keep states only, without an index of the past
	Memory    int         // bytes that states may take, approximately; DefaultMemory
	Flush     FlushPolicy // when to write to the store; defaultFlush if it is zero

	Metrics *measure.Metrics // private metrics, for partitions that their owner counts
	Log     *slog.Logger     // discards
	Drift   *event.Drift     // logs fields of writers that are dropped; no log
	Now     func() time.Time
	After   func(time.Duration, func()) (stop func() bool) // time.AfterFunc
}

// RestoreFunc calls f with each record of a partition of a snapshots topic, up to its
// end at the time of the call, and returns that end.
type RestoreFunc func(ctx context.Context, topic string, partition int32, f func(*pipeline.Record) error) (end int64, err error)

// SettledFunc calls f with each record of a partition from an offset to the high watermark
// at the time of the call, or later, and returns the offset after the last one. It waits
// for open transactions.
type SettledFunc func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) (end int64, err error)

// TailFunc calls f with each record of a partition from an offset to the end.
type TailFunc func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error

// Spec describes one projection.
type Spec struct {
	Fold   *fold.Fold
	Events kafka.TopicInfo // topic of the events
	Types  []*codec.Schema // event types on that topic

	Label    string // name in the store, in logs and in metrics; the fold's name
	Identity string // changes when data in the store becomes unusable: see [Identity]

	Snapshots  string // topic
	Internal   string // topic of internal records; "" if they are on Snapshots
	SnapshotID int    // schema id of snapshots
	// SnapshotsTopicID is Kafka's id of Snapshots, if Internal is set: a checkpoint is about
	// the snapshots on that topic only.
	SnapshotsTopicID string
	Late             string // topic for dead letters of late events; "" discards them
	Publish          topology.Publish
}

// Projection is a projection of a [Set].
type Projection struct {
	Spec  Spec          // immutable
	Fence control.Fence // erased aggregates, whose events are not folded

	metrics measure.Projection
}

// Name returns the name of the projection in the topology.
func (p *Projection) Name() string { return p.Spec.Fold.Name() }

// Label returns the name of this version of the projection in the store, in logs and
// in metrics.
func (p *Projection) Label() string { return p.Spec.Label }

// Home returns the partition to which an aggregate, or a window of one, belongs: see
// [home.Of].
func (p *Projection) Home(id string) (partition int32, sure bool) {
	return home.Of(p.Spec.Fold, id, p.Spec.Events.Partitions)
}

// Key names a partition of a topic of events.
type Key struct {
	Topic     string
	Partition int32
}

// Set holds the partitions that are assigned to this worker, for all of its sessions.
type Set struct {
	cfg    Config            // immutable; defaults are filled in
	topics map[string]*topic // immutable

	lanes    atomic.Int64 // number of assigned lanes, which share the memory
	opening  atomic.Int64 // number of partitions that sessions got and have not opened yet
	idMemory fill.Budget
	fills    fill.Jobs
	feeds    changes.Hub

	mu       sync.Mutex     // guards the fields below; see the package comment
	units    map[Key]*unit  // assigned
	left     map[Key]*unit  // given up; they answer questions for a while
	progress map[Key]string // restores that run, as text
}

// topic is a topic that projections read. It is immutable.
type topic struct {
	name, id    string
	types       []*codec.Schema
	projections []*Projection
}

// New returns a Set without partitions.
func New(cfg Config) *Set {
	cfg.Memory = cmp.Or(cfg.Memory, DefaultMemory)
	cfg.Flush = cmp.Or(cfg.Flush, defaultFlush)
	if cfg.Progress == nil {
		cfg.Progress = func(string, int32) kafka.PartitionProgress { return kafka.PartitionProgress{} }
	}
	if cfg.Metrics == nil {
		cfg.Metrics = measure.NewMetrics(prometheus.NewRegistry())
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.After == nil {
		cfg.After = func(after time.Duration, f func()) (stop func() bool) { return time.AfterFunc(after, f).Stop }
	}
	s := &Set{cfg: cfg, topics: map[string]*topic{}, units: map[Key]*unit{}, left: map[Key]*unit{}, progress: map[Key]string{}}
	for _, spec := range cfg.Projections {
		spec.Label = cmp.Or(spec.Label, spec.Fold.Name())
		p := &Projection{Spec: spec, metrics: cfg.Metrics.Of(spec.Label)}
		t := s.topics[spec.Events.Name]
		if t == nil {
			t = &topic{name: spec.Events.Name, id: spec.Events.ID, types: spec.Types}
			s.topics[t.name] = t
		}
		t.projections = append(t.projections, p)
	}
	return s
}

// Projection returns the projection with a label, nil if there is none.
func (s *Set) Projection(label string) *Projection {
	for _, p := range s.Projections() {
		if p.Label() == label {
			return p
		}
	}
	return nil
}

// Projections returns the projections, in no order.
func (s *Set) Projections() (all []*Projection) {
	for _, t := range s.topics {
		all = append(all, t.projections...)
	}
	return all
}

// NewDecoder returns a decoder of the projection's events, for one goroutine.
func (s *Set) NewDecoder(p *Projection) *event.Decoder {
	d := event.NewDecoder(s.cfg.Registry, p.Spec.Types, nil)
	d.ReadKeys(p.Spec.Fold.Keys(), p.Spec.Events.Name)
	d.LogDrift(s.cfg.Drift)
	return d
}

// KeepsHistory reports whether the Set keeps an index of the past.
func (s *Set) KeepsHistory() bool { return !s.cfg.NoHistory }

// Assigned returns the partitions that are assigned to this worker, in no order.
func (s *Set) Assigned() []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.units))
}

// assignedUnits returns the units that are assigned to this worker, in no order.
func (s *Set) assignedUnits() []*unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.units))
}

// assign adds a unit.
func (s *Set) assign(u *unit) {
	s.mu.Lock()
	s.units[u.key] = u
	delete(s.left, u.key)
	s.mu.Unlock()
	s.lanes.Add(int64(len(u.lanes)))
	for _, l := range u.lanes {
		l.projection.metrics.Unread.Add(float64(l.unread.Total()))
	}
	s.fills.Changed()
}

// Leave gives a partition up, if it is assigned. It waits for a running fold or
// write, and stores the folded events. Questions are answered from the partition for a
// short time more, because it may move to another session of this process.
func (s *Set) Leave(key Key) {
	s.mu.Lock()
	u := s.units[key]
	delete(s.units, key)
	if u != nil {
		u.leftAt = s.cfg.Now()
		s.left[key] = u
	}
	s.mu.Unlock()
	if u == nil {
		return
	}
	s.lanes.Add(-int64(len(u.lanes)))
	defer s.feeds.Wake() // releases wait for what is not published any more
	if err := u.revoke(s); err != nil {
		// The store stays behind, and the next owner continues from there.
		s.cfg.Log.Warn("the last events of a revoked partition are not in the store; they will be folded again", "topic", key.Topic, "partition", key.Partition, "err", err)
	}
}

// Close leaves all partitions. Call it after the sessions have ended: a group that is
// rebalancing does not revoke all partitions.
func (s *Set) Close() {
	for _, key := range s.Assigned() {
		s.Leave(key)
	}
}

// setProgress notes the progress of a partition's restore.
func (s *Set) setProgress(key Key, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress[key] = fmt.Sprintf(format, args...)
}

// clearProgress notes that a restore has ended.
func (s *Set) clearProgress(key Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.progress, key)
}

// Ready returns nil unless a partition is opened or restored. The error describes one
// restore.
func (s *Set) Ready() error {
	if n := s.opening.Load(); n > 0 {
		return fmt.Errorf("partitions are still to be opened: %d", n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.progress {
		return errors.New(text)
	}
	return nil
}

// layout returns the part of an identity that names the layout of the store's entries.
func (s *Set) layout() string { return fmt.Sprintf(" layout 2 history %v", !s.cfg.NoHistory) }

// Identity returns the identity of a projection's part of the store: it differs if the
// part was made from another log or by another fold. internal is zero if internal records
// are on the snapshots topic.
func Identity(cluster string, events, snapshots, internal kafka.TopicInfo, f *fold.Fold) string {
	id, err := json.Marshal(struct {
		Cluster    string `json:"cluster"`
		TopicID    string `json:"topic_id"`
		Partitions int    `json:"partitions"`
		Snapshots  string `json:"snapshots_id"`
		Internal   string `json:"internal_id,omitempty"`
		Fold       string `json:"fold"` // covers the state's schema
	}{cluster, events.ID, events.Partitions, snapshots.ID, internal.ID, f.Hash()})
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(id)
}
