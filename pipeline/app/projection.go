package app

import (
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
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// projections is what the sessions of a projector share: which projections there
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
type projections struct {
	store   *store.Store
	topics  map[string]*foldTopic
	restore restoreFunc
	tail    logReader                                 // of the events
	end     func(topic string, partition int32) int64 // where the log ends, as far as is known
	// hidden says that nothing is to be told of a partition, assigned or left; nil
	// hides nothing.
	hidden  func(key unitKey, left bool) bool
	history bool // keep an index of the past
	memory  int  // bytes that states may take, about
	policy  flushPolicy
	now     func() time.Time
	after   func(time.Duration, func()) (stop func() bool) // a timer
	log     *slog.Logger
	// follows says that the partitions are not this worker's: what is folded is not
	// published, and what the owner publishes is heard.
	follows bool
	// ends returns where a partition ends now; nil if nothing is added to what is
	// being restored.
	ends func(ctx context.Context, topic string, partition int32) (int64, error)

	lanes atomic.Int64 // assigned, of all sessions
	feeds feeds        // those who follow changes

	mu    sync.Mutex
	units map[unitKey]*unit  // assigned, of all sessions
	left  map[unitKey]*unit  // given up: answers may be given from them for a while
	why   map[unitKey]string // what is being restored, and how far it is
}

// defaultMemory is what the states of a worker may take.
const defaultMemory = 256 << 20

func newProjections(kept *store.Store, log *slog.Logger, restore restoreFunc) *projections {
	return &projections{
		store: kept, topics: map[string]*foldTopic{}, restore: restore, history: true, memory: defaultMemory, policy: defaultFlush, now: time.Now, after: realTimer, log: log,
		end:   func(string, int32) int64 { return 0 },
		units: map[unitKey]*unit{}, left: map[unitKey]*unit{}, why: map[unitKey]string{},
	}
}

// add adds a projection of the events of a topic.
func (ps *projections) add(events kafka.TopicInfo, types []*codec.Schema, p *projection) {
	t := ps.topics[events.Name]
	if t == nil {
		t = &foldTopic{name: events.Name, id: events.ID, types: types}
		ps.topics[events.Name] = t
	}
	t.projections = append(t.projections, p)
}

// restoreFunc calls f with each record of a partition of a snapshots topic, up
// to where it ends at the time of the call, and returns where that is.
type restoreFunc func(ctx context.Context, topic string, partition int32, f func(*pipeline.Record) error) (end int64, err error)

// foldTopic is a topic that projections read.
type foldTopic struct {
	name, id    string
	types       []*codec.Schema
	projections []*projection
}

// projection is one of the topology's.
type projection struct {
	fold       *fold.Fold
	partitions int    // of the topic of events
	fence      fence  // what was erased, and does not come back
	version    string // what the store, logs and metrics call it; its name if empty
	identity   string // of what the store keeps of it
	snapshots  string // topic
	snapshotID int    // schema id
	late       string // topic for dead letters; "" if there is none
	publish    topology.Publish

	results   [outcomes]prometheus.Counter
	published prometheus.Counter

	blockedNow prometheus.Gauge
}

func (p *projection) name() string { return p.fold.Name() }

type unitKey struct {
	topic     string
	partition int32
}

// unit is one partition of a topic, as long as it is assigned: the lanes of all
// projections that read it.
type unit struct {
	unitKey
	lanes  []*lane
	leftAt time.Time // when it was given up; under projections.mu

	handler *foldHandler // whose it is; nil until it is assigned

	mu      sync.Mutex // between the session, who folds, and those who revoke or read
	revoked bool       // nothing may be written any more: another has the partition
	read    int64      // next offset to be read
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

// foldHandler folds the records of one session.
type foldHandler struct {
	*projections
	decoders map[string]*decoder // by topic
	last     *unit               // of the record before
	batch    []*unit             // that the batch has read from
	epoch    int                 // number of the batch
	arena    arena
	limits   kafka.Limits // of what the topics take

	wake   func() // asks the session for a batch
	rungMu sync.Mutex
	rung   []*unit // that are to be flushed, though no record may come; under rungMu
}

func (ps *projections) newHandler(registry schemaSource) *foldHandler {
	h := &foldHandler{projections: ps, decoders: map[string]*decoder{}, epoch: 1, wake: func() {}}
	for _, t := range ps.topics {
		h.decoders[t.name] = newDecoder(registry, t.types, nil)
	}
	return h
}

// Limit implements [kafka.Limited].
func (h *foldHandler) Limit(limits kafka.Limits) { h.limits = limits }

// Assign implements [kafka.Assigner].
func (h *foldHandler) Assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	from := make([]int64, len(ps))
	for i, p := range ps {
		// A session that failed may not have been told that it lost it.
		h.leave(unitKey{p.Topic, p.Partition})
		u, err := h.open(ctx, p)
		if err != nil {
			return nil, err
		}
		from[i] = u.from()
		u.read, u.settled = from[i], from[i]
		h.mu.Lock()
		h.units[u.unitKey] = u
		delete(h.left, u.unitKey)
		h.mu.Unlock()
		h.lanes.Add(int64(len(u.lanes)))
		u.mu.Lock()
		u.handler = h
		u.arm(h.projections, 0)
		u.mu.Unlock()
	}
	return from, nil
}

// from returns the offset to read from.
func (u *unit) from() int64 {
	from := u.lanes[0].from()
	for _, l := range u.lanes {
		from = min(from, l.from())
	}
	return from
}

// sampleCost is how many records share one measurement of what folding costs.
const sampleCost = 64

// spent takes in how long it took to fold a record.
func (u *unit) spent(took time.Duration) {
	for _, l := range u.lanes {
		each := took / time.Duration(len(u.lanes))
		if l.cost == 0 {
			l.cost = each
		}
		l.cost += (each - l.cost) / 16
	}
}

// wants reports whether a record at an offset is of interest to a lane.
func (u *unit) wants(offset int64) bool {
	for _, l := range u.lanes {
		if offset >= min(l.next, l.published) || len(l.letters) > 0 || l.index != nil && l.index.lacks(offset) {
			return true
		}
	}
	return false
}

// Revoke implements [kafka.Assigner]. It waits for what is being folded or
// written, and keeps in the store how far that came.
func (h *foldHandler) Revoke(ps []kafka.Partition) {
	for _, p := range ps {
		h.leave(unitKey{p.Topic, p.Partition})
	}
}

// close is for when the sessions have ended: a group that was in the midst of
// sharing out the partitions anew does not revoke all of them.
func (ps *projections) close() {
	ps.mu.Lock()
	left := slices.Collect(maps.Keys(ps.units))
	ps.mu.Unlock()
	for _, key := range left {
		ps.leave(key)
	}
}

func (ps *projections) leave(key unitKey) {
	ps.mu.Lock()
	u := ps.units[key]
	delete(ps.units, key)
	if u != nil {
		u.leftAt = ps.now()
		ps.left[key] = u
	}
	ps.mu.Unlock()
	if u == nil {
		return
	}

	u.mu.Lock()
	defer u.mu.Unlock()
	u.revoked = true
	u.disarm()
	ps.lanes.Add(-int64(len(u.lanes)))
	if err := ps.save(u); err != nil {
		// The store stays behind, which is where the next owner goes on.
		ps.log.Warn("the last events of a partition that is given up are not in the store", "topic", u.topic, "partition", u.partition, "err", err)
	}
	for _, l := range u.lanes {
		l.blockedNow.Sub(float64(l.stuck.Load()))
		if !l.sending { // else when the transaction has ended
			l.free()
		}
	}
}

// Handle implements [pipeline.Handler].
func (h *foldHandler) Handle(ctx context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
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
	u.read = in.Offset + 1
	if u.events++; u.events%yieldEvery == 0 {
		runtime.Gosched()
	}
	return nil
}

// lock returns the record's unit, locked, or nil if it was revoked.
func (h *foldHandler) lock(in *pipeline.Record) *unit {
	if u := h.last; u != nil && u.partition == in.Partition && u.topic == in.Topic {
		u.mu.Lock()
		if !u.revoked {
			return u
		}
		u.mu.Unlock()
	}
	h.mu.Lock()
	u := h.units[unitKey{in.Topic, in.Partition}]
	h.mu.Unlock()
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
func (h *foldHandler) fold(ctx context.Context, u *unit, in *pipeline.Record) error {
	d, bad := h.decoders[in.Topic].decode(ctx, in, func(typ int) bool {
		for _, l := range u.lanes {
			if l.fold.Folds(typ) {
				return true
			}
		}
		return false
	})
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	for _, l := range u.lanes {
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
func (h *foldHandler) Flush(_ context.Context, out pipeline.Emitter) error {
	h.answer()
	for _, u := range h.batch {
		if err := h.flush(u, out); err != nil {
			return err
		}
	}
	return nil
}

func (h *foldHandler) flush(u *unit, out pipeline.Emitter) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return errRevoked
	}
	if err := h.saveIfDue(u); err != nil {
		return err
	}
	for _, l := range u.lanes {
		if err := l.publish(out, u.read, &h.arena, h.limits); err != nil {
			return err
		}
	}
	return nil
}

// saveIfDue writes what was folded to the store at the end of a batch, if it is time.
func (ps *projections) saveIfDue(u *unit) error {
	u.handled = ps.now()
	if p := &ps.policy; u.events <= p.little || u.events >= p.much || u.entries.Bytes() >= p.bytes ||
		u.handled.Sub(u.flushed) >= p.after || u.read >= ps.end(u.topic, u.partition) {
		return ps.save(u)
	}
	return nil
}

// save writes what was folded to the store, in one step.
func (ps *projections) save(u *unit) error {
	for _, l := range u.lanes {
		if err := l.write(u.entries); err != nil {
			return err
		}
		l.addHeard(u.entries)
	}
	if err := u.entries.Commit(); err != nil {
		return pipeline.Fatal("writing to the store: %w", err)
	}
	room := ps.memory / max(1, int(ps.lanes.Load()))
	for _, l := range u.lanes {
		if err := l.written(room); err != nil {
			return pipeline.Fatal("writing to the store: %w", err)
		}
		if l.follow != nil {
			l.follow.kept = l.follow.heard
		}
	}
	u.flushed, u.events = u.handled, 0
	return nil
}

// EndBatch implements [pipeline.Handler].
func (h *foldHandler) EndBatch(committed bool) {
	for _, u := range h.batch {
		u.mu.Lock()
		for _, l := range u.lanes {
			if committed {
				h.feeds.tell(l, u.read)
			}
			l.ended(committed, u.read)
			if u.revoked {
				l.free()
			}
		}
		if committed {
			u.settled = u.read
			u.arm(h.projections, 0)
		} else {
			u.read = u.settled
			u.arm(h.projections, retryFlush)
		}
		u.mu.Unlock()
	}
	h.feeds.changed()
	clear(h.batch)
	h.batch = h.batch[:0]
	h.epoch++
	h.arena.reset(arenaKeep)
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

func (l *lane) dedupe() string {
	if l.index != nil {
		return dedupeIndex
	}
	return dedupeLast
}

func (l *lane) checkpoint(next int64) ([]byte, error) {
	c := checkpoint{Fold: l.fold.Hash(), TopicID: l.source.TopicID, Dedupe: l.dedupe(), Next: next, Redo: next}
	if len(l.own.held) > 0 {
		c.Redo = min(next, l.own.held[0].offset())
	}
	if l.own.clock != noTime {
		c.Clock = l.own.clock
	}
	return json.Marshal(c)
}

// projectionMetrics counts what becomes of events in projections.
type projectionMetrics struct {
	events    *prometheus.CounterVec
	snapshots *prometheus.CounterVec
	blocked   *prometheus.GaugeVec
}

func newProjectionMetrics(reg prometheus.Registerer) *projectionMetrics {
	m := &projectionMetrics{
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

// uncounted returns what counts for nobody to see: of a partition that is followed,
// its owner counts.
func uncounted() *projectionMetrics { return newProjectionMetrics(prometheus.NewRegistry()) }

// of sets the counters of a projection.
func (m *projectionMetrics) of(p *projection) {
	name := p.label()
	for o, result := range outcomeNames {
		p.results[o] = m.events.WithLabelValues(name, result)
	}
	p.blockedNow = m.blocked.WithLabelValues(name)
	p.published = m.snapshots.WithLabelValues(name)
}
