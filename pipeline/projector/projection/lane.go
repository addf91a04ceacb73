package projection

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/rows"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// What the store keeps of a lane.
const (
	familyMark          store.Family = 1 // facts about the lane itself
	familyState         store.Family = 2 // aggregate's id -> fold.AppendAggregate
	familyHistory       store.Family = 3 // the others are in projection_index.go
	familyEvent         store.Family = 4
	familyType          store.Family = 5
	familyKeyframe      store.Family = 6
	familyShadow        store.Family = 7  // as familyState, of the past that is being indexed
	familyFilter        store.Family = 8  // see filter
	familyHeld          store.Family = 9  // offset -> event that waits for another
	familyBlocked       store.Family = 10 // aggregate's id -> blocked
	familyShadowHeld    store.Family = 11
	familyShadowBlocked store.Family = 12
	familyOwed          store.Family = 13 // id of an aggregate whose snapshot is due, which no event after published tells
	familyLetter        store.Family = 14 // offset of a late event whose dead letter is due -> starts of the windows it missed
	familyWindow        store.Family = 15 // start, aggregate's id
	familyBelated       store.Family = 16 // aggregate's id -> next to be folded when it changed: see changedBelatedly
)

// Keys under familyMark.
var (
	// markPublished is the offset below which everything is in snapshots of
	// committed transactions, as far as this store has heard.
	markPublished = []byte("published")
	markSkipped   = []byte("skipped") // offsets that people said to skip, in JSON
	markLoaded    = []byte("loaded")  // see lane.loaded
	markSent      = []byte("sent")    // dead letters of events below are in committed transactions
)

// Lane is one partition of one projection. It is used under its unit's lock.
type Lane struct {
	*Projection
	log    *slog.Logger
	now    func() time.Time
	Source fold.Source
	Part   *store.Part
	folder *fold.Folder
	states *states
	own    *track // of states
	index  *index // nil if there is no history

	next      int64 // everything below is folded
	position  int64 // the same of the store
	published int64 // everything below is in committed snapshots
	kept      int64 // what the store has of published
	loaded    int64 // snapshots that were loaded may have events up to here
	floor     int64 // no checkpoint is written below: another may have written it
	counted   int64 // what became of events below was counted before

	skips   map[int64]bool // offsets that people said to skip
	skipped bool           // the store or the snapshots lack some of them

	// What is due in snapshots, beside aggregates. While a transaction is being
	// ended (sending), what comes in addition is put by.
	dueBlocked map[string]bool // ids
	dueSkips   bool
	laterSkips bool
	sending    bool
	laterIDs   []string
	owed       map[string]bool // under familyOwed; false: no longer
	owedNow    map[string]bool // changed since the last write
	sentAt     time.Time       // when snapshots were published last
	cost       time.Duration   // of folding a record, about

	letters    map[int64][]int64 // dead letters that are due: of the event at an offset, the windows
	lettersNow map[int64]bool    // changed since the last write
	sentBelow  int64             // dead letters of events below are in committed transactions
	outbox     []pipeline.Record // dead letters of this batch

	policy topology.Publish // the projection's
	Follow *followed        // nil if the partition is this worker's

	// See changedBelatedly: what is not told yet, and what the store does not have.
	belated, belatedNow map[string]int64

	// Starts of windows: no earlier one is in the store, and the earliest that came
	// since the last write.
	firstWindow, newWindow int64

	// What questions are answered from, beside the store.
	recorded atomic.Int64 // time of the last record's, in milliseconds since 1970; 0 if there was none
	refused  refused
	stuck    atomic.Int64 // aggregates that are blocked, in the store
}

func newLane(p *Projection, source fold.Source, part *store.Part, history bool) *Lane {
	l := &Lane{Projection: p, Source: source, Part: part, folder: p.Fold.NewFolder(), states: newStates(part, familyState, source), position: -1, kept: -1,
		log: slog.New(slog.DiscardHandler), now: time.Now, skips: map[int64]bool{}, dueBlocked: map[string]bool{}, owed: map[string]bool{}, owedNow: map[string]bool{},
		letters: map[int64][]int64{}, lettersNow: map[int64]bool{}, belated: map[string]int64{}, belatedNow: map[string]int64{},
		policy: p.Publish, firstWindow: noTime, newWindow: math.MaxInt64}
	l.own = newTrack(l, l.states, ownFamilies)
	if history {
		l.index = newIndex(l)
	}
	return l
}

// from returns the offset to read from: where folding goes on, or publishing, or
// the index, whichever is behind.
func (l *Lane) from() int64 {
	from := min(l.next, l.published)
	for offset := range l.letters {
		from = min(from, offset)
	}
	if l.index != nil && l.index.shadow != nil {
		from = min(from, l.index.next)
	}
	return from
}

// handle takes an event, or what is no event (bad). Of one that is folded already,
// only the aggregate is due, or the index lacks it.
func (l *Lane) handle(in *pipeline.Record, d event.Decoded, bad error, b *store.Batch) error {
	l.pack()
	if l.index != nil && l.index.lacks(in.Offset) {
		// The past is folded beside the states, which are ahead of it. What was
		// wrong with an event was said when its turn was.
		if err := l.index.shadow.take(in, d, bad, b); err != nil {
			return err
		}
	}
	if in.Offset >= l.next {
		return l.own.take(in, d, bad, b)
	}
	return l.again(in, d, bad)
}

// pack packs the aggregates that are in use.
func (l *Lane) pack() {
	l.states.settle()
	if l.index != nil && l.index.shadow != nil {
		l.index.shadow.states.settle()
	}
}

// again finds out what is due because of an event that is folded, but not in
// committed snapshots, or whose dead letter is not in a committed transaction.
func (l *Lane) again(in *pipeline.Record, d event.Decoded, bad error) error {
	if missed, ok := l.letters[in.Offset]; ok {
		var id []byte
		if bad == nil {
			var err error
			if id, err = l.folder.Read(d.Type, d.Body, fold.OriginOf(in)); err != nil {
				return err // it was read before
			}
		}
		l.post(in, id, missed)
	}
	if in.Offset < l.published || bad == nil && !l.Fold.Folds(d.Type) {
		return nil
	}
	key := l.keyOf(in)
	if bad == nil {
		var err error
		if key, err = l.folder.Read(d.Type, d.Body, fold.OriginOf(in)); err != nil {
			key = l.keyOf(in)
		}
	}
	if len(key) == 0 || len(key) > maxKey {
		return nil
	}
	if l.own.blocked[string(key)] != nil {
		l.publishBlocked(string(key))
	}
	ids := [][]byte{key}
	if w := l.Fold.Window(); w.Size > 0 && bad == nil {
		ids = nil
		for _, start := range w.Starts(nil, l.folder.Time()) {
			ids = append(ids, fold.AppendWindowID(nil, key, start))
		}
	}
	for _, id := range ids {
		a, err := l.states.get(id)
		if err != nil {
			return err
		}
		if a.Version > 0 {
			l.publishSoon(a)
		}
	}
	return nil
}

// keyOf returns the key of a record that stands for its aggregate's id, where the
// event does not tell; nil if it is not the id.
func (p *Projection) keyOf(in *pipeline.Record) []byte {
	if !p.Fold.TellsByKey() {
		return nil
	}
	return in.Key
}

// count counts what became of an event, once.
func (t *track) count(in *pipeline.Record, o outcome) {
	if !t.isShadow() && in.Offset >= t.counted {
		t.results[o].Inc()
	}
}

// publishSoon says that an aggregate's snapshot is due.
func (l *Lane) publishSoon(a *aggregate) {
	if l.sending {
		a.later = true
		return
	}
	a.due = true
}

// publishBlocked says that what is known of a blocked aggregate is due.
func (l *Lane) publishBlocked(id string) {
	if l.sending {
		l.laterIDs = append(l.laterIDs, id)
		return
	}
	l.dueBlocked[id] = true
}

// owe says that an aggregate's snapshot is due, which no event that would be read
// again says.
func (t *track) owe(id string) {
	if t.isShadow() {
		return
	}
	t.owed[id], t.owedNow[id] = true, true
	t.publishBlocked(id)
	if a, err := t.states.get([]byte(id)); err == nil { // else it is owed all the same
		if a.Version > 0 {
			t.changedBelatedly(id)
		}
		t.publishSoon(a)
	}
}

// reasonLate is why an event becomes a dead letter that came after its window.
const reasonLate pipeline.Reason = "late"

// letter says that an event came too late for some windows.
func (t *track) letter(in *pipeline.Record, key []byte, missed []int64) {
	if t.Late == "" || in.Offset < t.sentBelow {
		return
	}
	t.letters[in.Offset] = slices.Clone(missed)
	t.lettersNow[in.Offset] = true
	t.post(in, key, missed)
}

// post puts a dead letter of the event that was read last among those of the batch.
func (l *Lane) post(in *pipeline.Record, key []byte, missed []int64) {
	var windows []string
	for _, start := range missed {
		windows = append(windows, time.UnixMicro(start).UTC().Format(time.RFC3339Nano))
	}
	err := pipeline.Reject(reasonLate, "it came after the end of its window from %s", strings.Join(windows, ", "))
	letter := deadletter.New(in, l.Late, l.Label(), stageFold, err, l.now())
	if l.Fold.Bare() {
		deadletter.AddDerived(event.Derived{ID: l.folder.EventID(), Key: key, Time: time.UnixMicro(l.folder.Time())}, &letter)
	}
	l.outbox = append(l.outbox, letter)
}

// stageFold stands for a stage in a dead letter that a projection made.
const stageFold = "fold"

// write adds to the batch what the store does not have yet.
func (l *Lane) write(b *store.Batch) error {
	if err := l.own.write(b); err != nil {
		return err
	}
	for id, next := range l.belatedNow {
		b.Put(l.Part, familyBelated, []byte(id), codec.AppendLong(nil, next))
	}
	if err := l.forget(b); err != nil {
		return err
	}
	if l.published != l.kept {
		b.Put(l.Part, familyMark, markPublished, codec.AppendLong(nil, l.published))
	}
	if l.skipped {
		value, err := l.encodeSkips()
		if err != nil {
			return err
		}
		b.Put(l.Part, familyMark, markSkipped, value)
	}
	for id := range l.owedNow {
		if l.owed[id] {
			b.Put(l.Part, familyOwed, []byte(id), nil)
		} else {
			b.Delete(l.Part, familyOwed, []byte(id))
		}
	}
	for offset := range l.lettersNow {
		missed, ok := l.letters[offset]
		if !ok {
			b.Delete(l.Part, familyLetter, offsetKey(nil, offset))
			continue
		}
		var value []byte
		for _, start := range missed {
			value = codec.AppendLong(value, start)
		}
		b.Put(l.Part, familyLetter, offsetKey(nil, offset), value)
	}
	if l.next != l.position {
		b.SetPosition(l.Part, l.next)
	}
	if l.index != nil {
		return l.index.write(b)
	}
	return nil
}

// setStuck tells how many aggregates are blocked.
func (l *Lane) setStuck() {
	n := int64(len(l.own.blocked))
	if before := l.stuck.Swap(n); n != before {
		l.blockedNow.Add(float64(n - before))
	}
}

func (l *Lane) encodeSkips() ([]byte, error) { return json.Marshal(slices.Sorted(maps.Keys(l.skips))) }

func (l *Lane) decodeSkips(value []byte) error {
	var offsets []int64
	if err := json.Unmarshal(value, &offsets); err != nil {
		return fmt.Errorf("the list of skipped offsets: %w", err)
	}
	for _, offset := range offsets {
		l.skips[offset] = true
	}
	return nil
}

// forgetAtOnce bounds how many windows are deleted with one flush.
const forgetAtOnce = 10_000

// forget deletes windows that are not to be kept any longer.
func (l *Lane) forget(b *store.Batch) error {
	w := l.Fold.Window()
	limit, ok := w.KeptFrom(l.own.clock)
	if !ok || l.own.clock == noTime || l.firstWindow >= limit {
		return nil
	}
	v := l.Part.View()
	defer v.Close() //nolint:errcheck // only read
	var ids []string
	err := v.Scan(familyWindow, nil, windowKey(limit, ""), false, func(key, _ []byte) bool {
		ids = append(ids, string(key[8:]))
		b.Delete(l.Part, familyWindow, slices.Clone(key))
		return len(ids) < forgetAtOnce
	})
	if err != nil {
		return err
	}
	if len(ids) < forgetAtOnce {
		// Those that this batch makes are not in the view.
		l.firstWindow = min(limit, l.newWindow)
	}
	for _, id := range ids {
		a, err := l.states.get([]byte(id))
		if err != nil {
			return err
		}
		b.Delete(l.Part, familyState, []byte(id))
		b.Delete(l.Part, familyBelated, []byte(id))
		a.Aggregate, a.clocks, a.gone = fold.Aggregate{Source: l.Source}, clocks{}, true
		l.own.owe(id)
		l.states.settle()
	}
	return nil
}

// written says that what write added is in the store. room is how many bytes of
// memory the lane's states may take.
func (l *Lane) written(room int) error {
	l.position, l.kept, l.skipped = l.next, l.published, false
	l.setStuck()
	if err := l.own.written(room); err != nil {
		return err
	}
	for id := range l.owedNow {
		if !l.owed[id] {
			delete(l.owed, id)
		}
	}
	clear(l.owedNow)
	clear(l.lettersNow)
	clear(l.belatedNow)
	l.newWindow = math.MaxInt64
	if l.index != nil {
		return l.index.written(room)
	}
	return nil
}

// isDue reports whether something is to be published at a time, when the batch
// has read up to an offset.
func (l *Lane) isDue(read int64) bool {
	if !l.has(read) {
		return false
	}
	switch p := l.policy; {
	case p.Events > 0:
		return read-l.published >= p.Events
	case p.Every > 0:
		return l.now().Sub(l.sentAt) >= p.Every
	case p.Recovery > 0:
		return time.Duration(read-l.published)*l.cost >= p.Recovery
	}
	return true
}

// has reports whether there is something to publish. Where the batch is behind the
// states, after one that was rolled back, they are not those of its offset.
func (l *Lane) has(read int64) bool {
	l.states.settle()
	return (len(l.states.due) > 0 || len(l.dueBlocked) > 0 || l.dueSkips) && read >= l.next && read >= l.floor
}

// dueAt returns when something is to be published though nothing more is read; it is
// not ok if there is nothing, or more has to be read for it to be time.
func (l *Lane) dueAt(read int64) (at time.Time, ok bool) {
	if l.policy.Every > 0 && l.has(read) {
		return l.sentAt.Add(l.policy.Every), true
	}
	return l.now(), l.isDue(read)
}

// publish emits the batch's dead letters and, if it is time, what is due and a
// checkpoint: that everything below read, up to where the batch has read, is in
// the snapshots then. A dead letter is cut off where its topic does not take it; a
// snapshot is bound by max_state alone, since a fold must not depend on a topic.
func (l *Lane) publish(out pipeline.Emitter, read int64, mem *rows.Arena, limits kafka.Limits) error {
	for i := range l.outbox {
		deadletter.Truncate(&l.outbox[i], limits.Record(l.Late))
		out.Emit(&l.outbox[i])
	}
	if len(l.outbox) > 0 {
		r := l.reserved(sentKey)
		r.Value = strconv.AppendInt(nil, max(read, l.sentBelow), 10)
		out.Emit(r)
	}
	if !l.isDue(read) {
		return nil
	}
	l.sending = true
	if err := l.states.publishing(func(id []byte, a *aggregate) error {
		if a.Version == 0 && !a.gone {
			return nil // blocked before anything happened to it
		}
		key := mem.Keep(append(mem.Grow(len(id)), id...))
		r := pipeline.Record{Topic: l.Snapshots, Partition: l.Source.Partition, Key: key, Time: time.UnixMicro(a.EventTime)}
		if a.gone {
			r.Time = l.now()
		} else {
			value := codec.AppendFrame(mem.Grow(5+512+len(a.State)), l.SnapshotID)
			if l.own.blocked[string(id)] != nil {
				value = l.Fold.AppendBlocked(value, id, &a.Aggregate)
			} else {
				value = l.Fold.AppendSnapshot(value, id, &a.Aggregate)
			}
			r.Value = mem.Keep(value)
		}
		out.Emit(&r)
		return nil
	}); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(l.dueBlocked)) {
		r := l.reserved([]byte(blockedKeys + id))
		if q := l.own.blocked[id]; q != nil {
			var err error
			if r.Value, err = q.encode(); err != nil {
				return err
			}
		}
		out.Emit(r)
	}
	if l.dueSkips {
		r := l.reserved(skippedKey)
		var err error
		if r.Value, err = l.encodeSkips(); err != nil {
			return err
		}
		out.Emit(r)
	}
	r := l.reserved(checkpointKey)
	var err error
	if r.Value, err = l.checkpoint(max(read, l.published)); err != nil {
		return err
	}
	out.Emit(r)
	return nil
}

// free lets go of what answers need not.
func (l *Lane) free() { l.states, l.own, l.index = nil, nil, nil }

// reserved is a record of the projector's own among the snapshots.
func (l *Lane) reserved(key []byte) *pipeline.Record {
	return &pipeline.Record{Topic: l.Snapshots, Partition: l.Source.Partition, Key: key, Time: l.now()}
}

// ended says how the transaction ended for which publish was called. What is due
// stays so until one commits.
func (l *Lane) ended(committed bool, read int64) {
	l.outbox = nil
	if l.states == nil {
		return // nothing was sent, and the partition was given up
	}
	l.states.settle()
	sent := l.sending && committed
	if sent {
		l.Projection.published.Add(float64(len(l.states.due)))
	}
	if l.sending {
		l.states.published(sent)
	}
	l.sending = false
	if committed {
		for offset := range l.letters {
			if offset < read {
				delete(l.letters, offset)
				l.lettersNow[offset] = true
			}
		}
		l.sentBelow = max(l.sentBelow, read)
	}
	if sent {
		for id := range l.owed {
			l.owed[id], l.owedNow[id] = false, true
		}
		clear(l.dueBlocked)
		l.dueSkips = false
		l.sentAt = l.now()
	}
	if committed && len(l.states.due) == 0 && len(l.dueBlocked) == 0 && !l.dueSkips {
		l.published = max(l.published, read)
	}
	l.states.catchUp()
	for _, id := range l.laterIDs {
		l.publishBlocked(id)
	}
	if l.laterSkips {
		l.dueSkips, l.laterSkips = true, false
	}
	l.laterIDs = l.laterIDs[:0]
}

// dropDue forgets what is due of a partition that is followed: it is for the owner to
// publish. Whoever goes on in this store finds out from the log what of it is left.
func (l *Lane) dropDue() {
	l.states.dropDue()
	clear(l.dueBlocked)
	l.dueSkips, l.outbox = false, nil
}
