// Package projection folds partitions of events into the states of aggregates,
// keeps them in a store, publishes snapshots, and answers questions from them.
//
// Start at [Set] and its [Handler]; track.go decides what becomes of an event.
package projection

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"runtime"
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
	"millrace/pipeline/projector/control"
	"millrace/pipeline/rows"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// Set is what the sessions of a projector share: which Set there
// are, the store, and what is assigned to this worker.
//
// The store is a pure function of the log, so it may be ahead of what is
// committed on Kafka, or behind, and is never rolled back. Three numbers say how
// a partition of a projection (a lane) stands, and each is right by itself:
//
//	next       everything below is folded, in memory
//	position   everything below is folded, in the store
//	published  everything below is in snapshots of committed transactions
//
// After a crash position may be above published: what is between the two is read
// again, not to be folded but to find out which aggregates are due. It may be
// below: what is between the two is folded again and not published again.
type Set struct {
	store   *store.Store
	Topics  map[string]*foldTopic
	restore RestoreFunc
	Tail    logReader                                 // of the events
	End     func(topic string, partition int32) int64 // where the log ends, as far as is known
	// hidden says that nothing is to be told of a partition, assigned or left; nil
	// hides nothing.
	Hidden      func(key Key, left bool) bool
	KeepHistory bool // keep an index of the past
	Memory      int  // bytes that states may take, about
	policy      flushPolicy
	now         func() time.Time
	after       func(time.Duration, func()) (stop func() bool) // a timer
	log         *slog.Logger
	// follows says that the partitions are not this worker's: what is folded is not
	// published, and what the owner publishes is heard.
	Follows bool
	// ends returns where a partition ends now; nil if nothing is added to what is
	// being restored.
	Ends func(ctx context.Context, topic string, partition int32) (int64, error)

	lanes atomic.Int64 // assigned, of all sessions
	feeds feeds        // those who follow changes

	Mu    sync.Mutex
	Units map[Key]*Unit  // assigned, of all sessions
	left  map[Key]*Unit  // given up: answers may be given from them for a while
	why   map[Key]string // what is being restored, and how far it is
}

// DefaultMemory is what the states of a worker may take.
const DefaultMemory = 256 << 20

func New(kept *store.Store, log *slog.Logger, restore RestoreFunc) *Set {
	return &Set{
		store: kept, Topics: map[string]*foldTopic{}, restore: restore, KeepHistory: true, Memory: DefaultMemory, policy: defaultFlush, now: time.Now, after: realTimer, log: log,
		End:   func(string, int32) int64 { return 0 },
		Units: map[Key]*Unit{}, left: map[Key]*Unit{}, why: map[Key]string{},
	}
}

// Add adds a projection of the events of a topic.
func (ps *Set) Add(events kafka.TopicInfo, types []*codec.Schema, p *Projection) {
	t := ps.Topics[events.Name]
	if t == nil {
		t = &foldTopic{Name: events.Name, id: events.ID, types: types}
		ps.Topics[events.Name] = t
	}
	t.Projections = append(t.Projections, p)
}

// RestoreFunc calls f with each record of a partition of a snapshots topic, up
// to where it ends at the time of the call, and returns where that is.
type RestoreFunc func(ctx context.Context, topic string, partition int32, f func(*pipeline.Record) error) (end int64, err error)

// foldTopic is a topic that projections read.
type foldTopic struct {
	Name, id    string
	types       []*codec.Schema
	Projections []*Projection
}

// Projection is one of the topology's.
type Projection struct {
	Fold       *fold.Fold
	Partitions int           // of the topic of events
	Fence      control.Fence // what was erased, and does not come back
	Version    string        // what the store, logs and metrics call it; its name if empty
	Identity   string        // of what the store keeps of it
	Snapshots  string        // topic
	SnapshotID int           // schema id
	Late       string        // topic for dead letters; "" if there is none
	Publish    topology.Publish

	results   [outcomes]prometheus.Counter
	published prometheus.Counter

	blockedNow prometheus.Gauge
}

func (p *Projection) Name() string { return p.Fold.Name() }

type Key struct {
	Topic     string
	Partition int32
}

// Unit is one partition of a topic, as long as it is assigned: the lanes of all
// projections that read it.
type Unit struct {
	Key
	Lanes  []*Lane
	leftAt time.Time // when it was given up; under projections.mu

	handler *Handler // whose it is; nil until it is assigned

	mu      sync.Mutex // between the session, who folds, and those who revoke or read
	revoked bool       // nothing may be written any more: another has the partition
	Read    int64      // next offset to be read
	settled int64      // the same as of the last batch that was committed
	epoch   int        // of the batch that read from it last

	// What was folded since the last flush: in this batch, and dirty states.
	entries *store.Batch
	flushed time.Time // when that was
	handled time.Time // the last batch's end
	asked   time.Time // when a question last had it flushed
	events  int       // since then

	alarm func() bool // stops the timer that is set; nil if none is
}

// flushPolicy says when a unit is flushed to the store: at the end of a batch, if
// there is little to write, or much, or it is some time since, or there is
// nothing more to read. A worker that is far behind flushes seldom, which is what
// makes it fast.
type flushPolicy struct {
	little int // events, at most
	much   int // events, at least
	bytes  int // of the index
	after  time.Duration
}

var defaultFlush = flushPolicy{little: 1 << 10, much: 1 << 18, bytes: 64 << 20, after: time.Second}

// yieldEvery is after how many events the session lets others run, who have little
// to do: a question that is asked while all cores fold waits for that, and not for
// its turn among those who never pause.
const yieldEvery = 256

// errRevoked ends a batch whose partition was taken away in its midst.
var errRevoked = errors.New("the partition was revoked")

// Handler folds the records of one session.
type Handler struct {
	*Set
	decoders map[string]*event.Decoder // by topic
	last     *Unit                     // of the record before
	batch    []*Unit                   // that the batch has read from
	epoch    int                       // number of the batch
	arena    rows.Arena
	limits   kafka.Limits // of what the topics take

	wake   func() // asks the session for a batch
	rungMu sync.Mutex
	rung   []*Unit // that are to be flushed, though no record may come; under rungMu
}

func (ps *Set) NewHandler(registry event.Schemas) *Handler {
	h := &Handler{Set: ps, decoders: map[string]*event.Decoder{}, epoch: 1, wake: func() {}}
	for _, t := range ps.Topics {
		h.decoders[t.Name] = event.NewDecoder(registry, t.types, nil)
	}
	return h
}

// Limit implements [kafka.Limited].
func (h *Handler) Limit(limits kafka.Limits) { h.limits = limits }

// Assign implements [kafka.Assigner].
func (h *Handler) Assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	from := make([]int64, len(ps))
	for i, p := range ps {
		// A session that failed may not have been told that it lost it.
		h.Leave(Key{p.Topic, p.Partition})
		u, err := h.Open(ctx, p)
		if err != nil {
			return nil, err
		}
		from[i] = u.from()
		u.Read, u.settled = from[i], from[i]
		h.Mu.Lock()
		h.Units[u.Key] = u
		delete(h.left, u.Key)
		h.Mu.Unlock()
		h.lanes.Add(int64(len(u.Lanes)))
		u.mu.Lock()
		u.handler = h
		u.arm(h.Set, 0)
		u.mu.Unlock()
	}
	return from, nil
}

// from returns the offset to read from.
func (u *Unit) from() int64 {
	from := u.Lanes[0].from()
	for _, l := range u.Lanes {
		from = min(from, l.from())
	}
	return from
}

// sampleCost is how many records share one measurement of what folding costs.
const sampleCost = 64

// spent takes in how long it took to fold a record.
func (u *Unit) spent(took time.Duration) {
	for _, l := range u.Lanes {
		each := took / time.Duration(len(u.Lanes))
		if l.cost == 0 {
			l.cost = each
		}
		l.cost += (each - l.cost) / 16
	}
}

// wants reports whether a record at an offset is of interest to a lane.
func (u *Unit) wants(offset int64) bool {
	for _, l := range u.Lanes {
		if offset >= min(l.next, l.published) || len(l.letters) > 0 || l.index != nil && l.index.lacks(offset) {
			return true
		}
	}
	return false
}

// Revoke implements [kafka.Assigner]. It waits for what is being folded or
// written, and keeps in the store how far that came.
func (h *Handler) Revoke(ps []kafka.Partition) {
	for _, p := range ps {
		h.Leave(Key{p.Topic, p.Partition})
	}
}

// Close is for when the sessions have ended: a group that was in the midst of
// sharing out the partitions anew does not revoke all of them.
func (ps *Set) Close() {
	ps.Mu.Lock()
	left := slices.Collect(maps.Keys(ps.Units))
	ps.Mu.Unlock()
	for _, key := range left {
		ps.Leave(key)
	}
}

func (ps *Set) Leave(key Key) {
	ps.Mu.Lock()
	u := ps.Units[key]
	delete(ps.Units, key)
	if u != nil {
		u.leftAt = ps.now()
		ps.left[key] = u
	}
	ps.Mu.Unlock()
	if u == nil {
		return
	}

	u.mu.Lock()
	defer u.mu.Unlock()
	u.revoked = true
	u.disarm()
	ps.lanes.Add(-int64(len(u.Lanes)))
	if err := ps.save(u); err != nil {
		// The store stays behind, which is where the next owner goes on.
		ps.log.Warn("the last events of a partition that is given up are not in the store", "topic", u.Topic, "partition", u.Partition, "err", err)
	}
	for _, l := range u.Lanes {
		l.blockedNow.Sub(float64(l.stuck.Load()))
		if !l.sending { // else when the transaction has ended
			l.free()
		}
	}
}

// Handle implements [pipeline.Handler].
func (h *Handler) Handle(ctx context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
	u := h.lock(in)
	if u == nil {
		return errRevoked
	}
	defer u.mu.Unlock()
	if u.epoch != h.epoch {
		u.epoch = h.epoch
		h.batch = append(h.batch, u)
	}
	if u.wants(in.Offset) {
		began := time.Time{}
		if u.events%sampleCost == 0 {
			began = h.now()
		}
		if err := h.fold(ctx, u, in); err != nil {
			return err
		}
		if !began.IsZero() {
			u.spent(h.now().Sub(began))
		}
	}
	u.Read = in.Offset + 1
	if u.events++; u.events%yieldEvery == 0 {
		runtime.Gosched()
	}
	return nil
}

// lock returns the record's unit, locked, or nil if it was revoked.
func (h *Handler) lock(in *pipeline.Record) *Unit {
	if u := h.last; u != nil && u.Partition == in.Partition && u.Topic == in.Topic {
		u.mu.Lock()
		if !u.revoked {
			return u
		}
		u.mu.Unlock()
	}
	h.Mu.Lock()
	u := h.Units[Key{in.Topic, in.Partition}]
	h.Mu.Unlock()
	h.last = u
	if u == nil {
		return nil
	}
	u.mu.Lock()
	if u.revoked {
		u.mu.Unlock()
		return nil
	}
	return u
}

// fold gives an event to all lanes that have not seen it.
func (h *Handler) fold(ctx context.Context, u *Unit, in *pipeline.Record) error {
	d, bad := h.decoders[in.Topic].Decode(ctx, in, func(typ int) bool {
		for _, l := range u.Lanes {
			if l.Fold.Folds(typ) {
				return true
			}
		}
		return false
	})
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	for _, l := range u.Lanes {
		if err := l.handle(in, d, bad, u.entries); err != nil {
			return err
		}
		l.next = max(l.next, in.Offset+1)
		l.recorded.Store(in.Time.UnixMilli())
		if l.index != nil {
			l.index.passed(in.Offset + 1)
		}
	}
	return nil
}

// Flush implements [pipeline.Handler]: what was folded goes to the store, if it
// is time, and what is due goes out.
func (h *Handler) Flush(_ context.Context, out pipeline.Emitter) error {
	h.answer()
	for _, u := range h.batch {
		if err := h.flush(u, out); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) flush(u *Unit, out pipeline.Emitter) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return errRevoked
	}
	if err := h.saveIfDue(u); err != nil {
		return err
	}
	for _, l := range u.Lanes {
		if err := l.publish(out, u.Read, &h.arena, h.limits); err != nil {
			return err
		}
	}
	return nil
}

// saveIfDue writes what was folded to the store at the end of a batch, if it is time.
func (ps *Set) saveIfDue(u *Unit) error {
	u.handled = ps.now()
	if p := &ps.policy; u.events <= p.little || u.events >= p.much || u.entries.Bytes() >= p.bytes ||
		u.handled.Sub(u.flushed) >= p.after || u.Read >= ps.End(u.Topic, u.Partition) {
		return ps.save(u)
	}
	return nil
}

// save writes what was folded to the store, in one step.
func (ps *Set) save(u *Unit) error {
	for _, l := range u.Lanes {
		if err := l.write(u.entries); err != nil {
			return err
		}
		l.addHeard(u.entries)
	}
	if err := u.entries.Commit(); err != nil {
		return pipeline.Fatal("writing to the store: %w", err)
	}
	room := ps.Memory / max(1, int(ps.lanes.Load()))
	for _, l := range u.Lanes {
		if err := l.written(room); err != nil {
			return pipeline.Fatal("writing to the store: %w", err)
		}
		if l.Follow != nil {
			l.Follow.kept = l.Follow.Heard
		}
	}
	u.flushed, u.events = u.handled, 0
	return nil
}

// EndBatch implements [pipeline.Handler].
func (h *Handler) EndBatch(committed bool) {
	for _, u := range h.batch {
		u.mu.Lock()
		for _, l := range u.Lanes {
			if committed {
				h.feeds.tell(l, u.Read)
			}
			l.ended(committed, u.Read)
			if u.revoked {
				l.free()
			}
		}
		if committed {
			u.settled = u.Read
			u.arm(h.Set, 0)
		} else {
			u.Read = u.settled
			u.arm(h.Set, retryFlush)
		}
		u.mu.Unlock()
	}
	h.feeds.changed()
	clear(h.batch)
	h.batch = h.batch[:0]
	h.epoch++
	h.arena.Reset(rows.ArenaKeep)
}

// checkpointKey is the key of the record that says how far a partition's
// snapshots reach. It goes to the partition it is about; no aggregate's id begins
// with a zero byte by intent.
var checkpointKey = []byte("\x00checkpoint")

// checkpoint is the value of that record, in JSON.
type checkpoint struct {
	Fold    string `json:"fold"`            // hash
	TopicID string `json:"topic_id"`        // of the events
	Dedupe  string `json:"dedupe"`          // how duplicates were found: dedupeIndex or dedupeLast
	Next    int64  `json:"next"`            // every event below is in the snapshots, or waits for another
	Redo    int64  `json:"redo"`            // the first that waits; Next if none does. Folding goes on from here
	Clock   int64  `json:"clock,omitempty"` // latest event time, of a projection with windows
}

// With an index, an event is a duplicate if its id was ever applied; without, if
// it is that of the event before. Snapshots made one way do not go on the other.
const (
	dedupeIndex = "index"
	dedupeLast  = "last"
)

func (l *Lane) dedupe() string {
	if l.index != nil {
		return dedupeIndex
	}
	return dedupeLast
}

func (l *Lane) checkpoint(next int64) ([]byte, error) {
	c := checkpoint{Fold: l.Fold.Hash(), TopicID: l.Source.TopicID, Dedupe: l.dedupe(), Next: next, Redo: next}
	if len(l.own.held) > 0 {
		c.Redo = min(next, l.own.held[0].offset())
	}
	if l.own.clock != noTime {
		c.Clock = l.own.clock
	}
	return json.Marshal(c)
}

// Metrics counts what becomes of events in projections.
type Metrics struct {
	events    *prometheus.CounterVec
	snapshots *prometheus.CounterVec
	blocked   *prometheus.GaugeVec
}

func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_projection_events_total",
			Help: "Events by what became of them: applied, ignored (the projection does nothing on this type), late (the aggregate was deleted before, or a window is over), duplicate (its id was applied before), conflict (its sequence number was), held (it waits for the one before), blocked (it cannot be folded, and its aggregate waits for a release), mispartitioned (the same, for it stands in another partition than its aggregate), queued (its aggregate is blocked), skipped (people said so) or rejected (bad, and of nobody knows which aggregate). What was held or queued is counted again when its turn comes.",
		}, []string{"projection", "result"}),
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_snapshots_published_total",
			Help: "Snapshots in committed transactions.",
		}, []string{"projection"}),
	}
	m.blocked = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_projection_blocked_aggregates",
		Help: "Aggregates of this worker's partitions whose events wait for a release (projector blocked lists them).",
	}, []string{"projection"})
	reg.MustRegister(m.events, m.snapshots, m.blocked)
	return m
}

// PrivateMetrics returns what counts for nobody to see: of a partition that is followed,
// its owner counts.
func PrivateMetrics() *Metrics { return NewMetrics(prometheus.NewRegistry()) }

// Of sets the counters of a projection.
func (m *Metrics) Of(p *Projection) {
	name := p.Label()
	for o, result := range outcomeNames {
		p.results[o] = m.events.WithLabelValues(name, result)
	}
	p.blockedNow = m.blocked.WithLabelValues(name)
	p.published = m.snapshots.WithLabelValues(name)
}

// Has reports whether a partition is assigned to this worker.
func (ps *Set) Has(key Key) bool {
	ps.Mu.Lock()
	defer ps.Mu.Unlock()
	return ps.Units[key] != nil
}

// Label is what the store, logs and metrics call the projection.
func (p *Projection) Label() string { return cmp.Or(p.Version, p.Name()) }
