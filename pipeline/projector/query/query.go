// Package query serves the HTTP API of projections: current and past states of
// aggregates, lists, histories, and a feed of changes. It reads all data through
// [Projection] and depends neither on Kafka nor on the store.
//
//	GET /v1/openapi.json
//	GET /v1/projections
//	GET /v1/projections/{name}?filter=&sort=&limit=&cursor=
//	GET /v1/projections/{name}/feed?id=&filter=&from=
//	GET /v1/projections/{name}/{id}?at_version= | at_time= | at_recorded_time=
//	GET /v1/projections/{name}/{id}/history?limit=&before=
//	GET /v1/projections/{name}/{id}/why
//	GET /v1/projections/{name}/{id}/diff?from=&to=
//	GET /v1/events?type=&limit=&cursor=
//	GET /v1/events/{id}
//	GET /v1/blocked/{name}?limit=&cursor=
//	POST /v1/blocked/{name}/{id}/release?skip=
//
// A request for a current state may name an event that the state must include
// (after_event) or a minimum version (min_version), and a timeout for it (wait).
//
// Every answer holds the hash of the fold that produced it, and the offset, lag
// and age of each partition it was read from. Errors are problem details (RFC
// 9457). Unknown parameters are errors.
//
// Start reading at [Handler]; routes.go lists all routes, and the OpenAPI document
// is generated from that list.
//
// The handler is safe for concurrent use: net/http calls it from one goroutine per
// request. The caller owns the projections, and they must be safe for concurrent
// use too.
package query

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// A Projection reads one projection. Its methods are safe for concurrent use. They
// return ErrElsewhere if any partition of the request is not available here; they
// never return a partial answer.
type Projection interface {
	Describe() Description
	// Partitions returns the positions of this worker's partitions.
	Partitions() []Position
	// AllPartitions returns the positions of the partitions of all workers. absent
	// maps each partition with an unknown position to the reason.
	AllPartitions(ctx context.Context) (at []Position, absent map[int32]string, err error)
	// Get returns an aggregate. It fails with ErrNotFound if the aggregate does not
	// exist, and with ErrElsewhere if another worker owns its partition.
	Get(ctx context.Context, id string) (Aggregate, error)
	// Scan calls f for each aggregate with an id greater than after, in order of id,
	// until f returns false. It returns the positions of the partitions it read.
	// Aggregate.State is valid only during the call of f.
	Scan(ctx context.Context, after string, f func(Aggregate) bool) ([]Position, error)

	// GetAt returns an aggregate at a moment of its past. It may fail with
	// ErrNoVersion. GetAt and the methods below it in this group may fail with
	// ErrNoHistory.
	GetAt(ctx context.Context, id string, at At) (Aggregate, error)
	// History returns at most limit events of an aggregate, latest first, with
	// versions below before. before = 0 means no bound.
	History(ctx context.Context, id string, before int64, limit int) ([]Event, error)
	// Why returns the last event that changed each field of an aggregate.
	Why(ctx context.Context, id string) (Why, error)
	// Diff returns an aggregate at two versions, and the dotted paths of the fields
	// that differ. Version 0 is the state before the first event. to = 0 means the
	// latest version; from = -1 means the version before to.
	Diff(ctx context.Context, id string, from, to int64) (a, b Aggregate, fields []string, err error)
	// Types returns the event types that the projection folds.
	Types() []*codec.Schema
	// Event returns an applied event by its id: of an aggregate, or of any if aggregate is
	// "". It may fail with ErrEventID.
	Event(ctx context.Context, id, aggregate string) (Event, error)
	// Events returns at most limit applied events of a type (its full name), latest
	// event time first, and the positions of the partitions it read. It returns only
	// events before the cursor; nil means no bound.
	Events(ctx context.Context, typ string, before *EventCursor, limit int) ([]Event, []Position, error)

	// Blocked returns at most limit aggregates that wait for a release, longest wait
	// first. It returns only aggregates after the cursor; nil means no bound.
	Blocked(ctx context.Context, after *EventCursor, limit int) ([]BlockedAggregate, error)
	// Release folds the queued events of a blocked aggregate again. skip leaves out
	// the event that blocked it. It may fail with ErrNotFound, ErrNotBlocked, ErrBusy
	// or ErrUnanswered.
	Release(ctx context.Context, id string, skip bool) (ReleaseResult, error)

	// Outcome returns the outcome of an event as far as this worker knows it.
	Outcome(ctx context.Context, e EventRef) (Outcome, error)
	// Changed returns a channel that is closed when outcomes may have changed.
	Changed() <-chan struct{}
	// Await returns the outcome of an event, from whichever worker knows it. It waits
	// up to wait for a final outcome.
	Await(ctx context.Context, e EventRef, wait time.Duration) (Outcome, error)
	// Follow calls f with changes until the context ends, f returns an error, or the
	// feed cannot continue (ErrMoved, ErrSlow, ErrAhead). The first calls report the
	// position at which each partition starts. Changes of one partition arrive in the
	// order of the log; there is no order between partitions.
	Follow(ctx context.Context, start Start, f func(Changes) error) error
}

// At is a moment of an aggregate's past. Exactly one field is set. A time means
// the state before the first later event.
type At struct {
	Version  int64
	Time     time.Time // by the events' own timestamps
	Recorded time.Time // by the timestamps of their records
}

// A Why explains the state of an aggregate.
type Why struct {
	Aggregate Aggregate
	// Fields maps the dotted path of a field to the event that last changed it. A
	// field that never changed has its default value and no entry.
	Fields map[string]Event
	// Before is 0 if the search covered the whole history, or as much of it as it
	// needed. Otherwise the search stopped at version Before, and the fields in
	// Unknown were last changed by an earlier event, or never.
	Before  int64
	Unknown []string
}

// An Event is an event that was applied to an aggregate.
type Event struct {
	ID        string
	Type      *codec.Schema
	Time      pipeline.Time
	Recorded  pipeline.Time
	Topic     string
	Partition int32
	Offset    int64
	Aggregate string
	Version   int64 // version of the aggregate after the event
	Sequence  int64 // its sequence number; 0 if it has none
	Body      []byte
}

// A EventRef identifies an event for an outcome query.
type EventRef struct {
	ID string
	// Partition and Next give the event's position: Next is its offset plus one.
	// Next is 0 if the position is unknown.
	Partition int32
	Next      int64

	// Aggregate is the id of the aggregate that is asked for; "" means any. Equal ids of
	// two aggregates are two events, unless the projection says otherwise.
	Aggregate string `json:",omitempty"`
}

// An Outcome is the known outcome of an event in a projection.
type Outcome struct {
	State     OutcomeState
	Aggregate string // id of the event's aggregate; "" if unknown
	Version   int64  // version of the aggregate after the event, if applied
	Detail    string // explanation for people

	// Of a conflict: the sequence number, and the id of the event that has it; "" if that
	// is unknown.
	Sequence int64
	Winner   string

	// The pipeline and stage that filtered or rejected the event, and the reason code.
	Pipeline, Stage, Reason string
	// Open reports that the outcome may still improve soon.
	Open bool
}

// Final reports whether the outcome cannot change any more.
func (o *Outcome) Final() bool { return o.State != Pending && !o.Open }

// OutcomeState is an outcome as the API names it.
type OutcomeState string

const (
	// Applied: the state includes the event.
	Applied OutcomeState = "applied"
	// Pending: the worker has not seen the event. It may never see it.
	Pending OutcomeState = "pending"
	// Rejected: the event is bad and will never be applied.
	Rejected OutcomeState = "rejected"
	// Late: the aggregate was deleted before the event.
	Late OutcomeState = "late"
	// Conflict: another event with the same sequence number was applied before, or one with
	// a later number.
	Conflict OutcomeState = "conflict"
	// Filtered: a pipeline before the projection dropped the event on purpose.
	Filtered OutcomeState = "filtered"
	// DeadLetter: a pipeline before the projection could not process the event.
	DeadLetter OutcomeState = "dead_letter"
	// Blocked: the event is not known to be applied, and its aggregate is blocked.
	Blocked OutcomeState = "blocked"
	// Passed: the projection read past the event's offset without applying it.
	Passed OutcomeState = "passed"
)

// A Start is the starting point of a feed.
type Start struct {
	ID string // of the only aggregate to follow; "" means all
	// From maps a partition to the first offset to follow. If From is not empty, a
	// partition without an entry is followed from its beginning: it was created
	// after From was written.
	From map[int32]int64
	// Beginning requests all existing aggregates first.
	Beginning bool
}

// Changes are changes of one partition.
type Changes struct {
	Aggregates []Aggregate
	// Next holds, for each aggregate, the offset to resume from after it. If Next is
	// nil, a reader can resume only after the last aggregate.
	Next []int64
	// At is the partition's position after these changes. If More is set, further
	// changes follow before the partition reaches At.
	At   Position
	More bool
	// PositionOnly means that nothing changed; the message only reports the position.
	PositionOnly bool
	// Stalled, if not nil, lists all partitions that deliver no changes at the moment.
	// The other fields are then unset.
	Stalled []Stall
}

// A Stall is a partition that delivers no changes at the moment, with the reason.
type Stall struct {
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset" doc:"Offset from which the partition will resume."`
	Detail    string `json:"detail" doc:"Why the partition delivers no changes."`
}

// A BlockedAggregate has a gap or an event that cannot be folded. Its later events
// wait.
type BlockedAggregate struct {
	ID        string        `json:"id"`
	Partition int32         `json:"partition"`
	Offset    int64         `json:"offset" doc:"Offset of the event that cannot be folded."`
	Time      pipeline.Time `json:"time" doc:"Timestamp of that event's record."`
	Reason    string        `json:"reason"`
	Error     string        `json:"error"`
	Queued    int64         `json:"queued" doc:"Number of later events that wait."`
	Last      int64         `json:"last,omitempty" doc:"Offset of the last waiting event; omitted if none waits."`
}

// Cursor returns the position of b in the list of blocked aggregates.
func (b *BlockedAggregate) Cursor() EventCursor {
	return EventCursor{b.Time.UnixMicro(), b.Partition, b.Offset}
}

// ReleaseResult is the result of a release.
type ReleaseResult struct {
	Events  int               `json:"events" doc:"Number of events that were folded or skipped."`
	Blocked *BlockedAggregate `json:"blocked,omitempty" doc:"Set if the aggregate is blocked again, at the first event that still cannot be folded."`
}

// An EventCursor is a position in a list of events.
type EventCursor struct {
	Time      int64 // of the event, in microseconds since 1970
	Partition int32
	Offset    int64
}

// Compare orders cursors by time, partition and offset.
func (c EventCursor) Compare(d EventCursor) int {
	return cmp.Or(cmp.Compare(c.Time, d.Time), cmp.Compare(c.Partition, d.Partition), cmp.Compare(c.Offset, d.Offset))
}

// Errors of a [Projection].
var (
	ErrNotFound   = errors.New("aggregate not found")
	ErrElsewhere  = errors.New("another worker has the partition")
	ErrNoVersion  = errors.New("version not found")
	ErrNoHistory  = errors.New("this worker keeps no history because it runs with --no-history")
	ErrFilling    = errors.New("the history is being filled after a restore")
	ErrMoved      = errors.New("this worker gained or lost partitions")
	ErrSlow       = errors.New("the reader is too slow")
	ErrAhead      = errors.New("the message id belongs to another log")
	ErrNotBlocked = errors.New("the aggregate is not blocked")
	ErrBusy       = errors.New("try again")
	ErrEventID    = errors.New("the event is not named as its topic declares")
	ErrUnanswered = errors.New("the result is unknown")
)

// A Description describes a projection.
type Description struct {
	Name      string        `json:"name"`
	Version   string        `json:"projection_version" doc:"Hash of the fold. States from different folds are not comparable."`
	Topic     string        `json:"topic" doc:"Topic of the events."`
	Snapshots string        `json:"snapshots" doc:"Topic of the snapshots."`
	State     *codec.Schema `json:"-"`

	// Decrypt decrypts the encrypted fields of a record. It is nil if the projection has
	// no encrypted fields.
	Decrypt func(s *codec.Schema, body []byte) (Decrypted, error) `json:"-"`
}

// A Decrypted is a record with its encrypted fields in plaintext.
type Decrypted struct {
	Type   *codec.Node
	Body   []byte
	Hidden map[string]string // dotted path of a field that cannot be decrypted (it is null) to the reason
	Plain  []string          // dotted paths of tagged fields with a text that was never encrypted
}

// hiddenUnreadable is the reason for a record that has no JSON. It is null in an answer,
// so that one such record does not fail a list of others.
const hiddenUnreadable = "unreadable"

// json returns a record as JSON. The result has what it says of tagged fields.
func (d *Description) json(s *codec.Schema, body []byte) (text json.RawMessage, shown Decrypted, err error) {
	shown = Decrypted{Type: s.Root(), Body: body}
	if d.Decrypt != nil {
		if shown, err = d.Decrypt(s, body); err != nil {
			return nil, shown, err
		}
	}
	if text, err = codec.AppendJSON(nil, shown.Type, shown.Body); err != nil {
		return json.RawMessage("null"), Decrypted{Hidden: map[string]string{"*": hiddenUnreadable}}, nil
	}
	return text, shown, nil
}

// A Position is a projection's progress in a partition.
type Position struct {
	Partition int32 `json:"partition" doc:"Partition of the events' topic."`
	Offset    int64 `json:"offset" doc:"Next offset to fold. The answer includes all earlier events."`
	// Lag and Seconds are those of a reader of the log: see kafka.PartitionProgress.
	Lag     int64    `json:"lag" doc:"Number of offsets up to the end of the log that the answer does not include; 0 if it includes all committed events."`
	Seconds float64  `json:"lag_seconds" doc:"Age in seconds of the last record that was folded, by its timestamp, while there is a lag; since the worker got the partition if it has folded none yet. 0 if there is no lag."`
	Unread  []Unread `json:"unread,omitempty" doc:"Ranges of offsets that the topic had deleted before this projection read them. The states lack their events."`
}

// Unread is a range of offsets that the log deleted before a projection read them.
type Unread struct {
	From    int64         `json:"from" doc:"First offset."`
	To      int64         `json:"to" doc:"Offset after the last one."`
	Noticed pipeline.Time `json:"noticed" doc:"When the projection continued without them."`
}

// An Aggregate is an aggregate's state and its origin.
type Aggregate struct {
	ID        string
	Version   int64
	Deleted   bool
	Status    string // blocked or gap as in the snapshot; else ""
	EventID   string // last applied event
	EventTime pipeline.Time
	Offset    int64  // of that event
	Sequence  int64  // number of the last event that had one; 0 if none had
	State     []byte // Avro
	At        Position
}

// Limits of requests.
const (
	defaultLimit = 100
	maxLimit     = 1000
	maxWait      = 30 * time.Second
	maxText      = 4 << 10 // bytes of one parameter
	maxCursor    = 16 << 10
	maxScanned   = 200_000 // aggregates read for one page
	maxWaiting   = 256     // concurrent requests that wait for an event
)

// api serves the routes. All requests share it; apart from filters (own lock) and
// the two channels it does not change after Handler returns.
type api struct {
	projections []Projection
	names       map[string]Projection
	log         *slog.Logger
	document    []byte // OpenAPI
	filters     filters
	waiting     chan struct{} // holds a token for each waiting request
	following   chan struct{} // holds a token for each feed
	turns       chan struct{} // holds a token for each large answer that is being made
}

// DefaultFeeds is the default of the maximum number of concurrent feeds.
const DefaultFeeds = 64

// Handler returns the HTTP API of the projections, with at most feeds concurrent feeds.
// It serves all paths below /v1/.
func Handler(log *slog.Logger, feeds int, projections ...Projection) http.Handler {
	a := &api{
		projections: projections, names: map[string]Projection{}, log: log,
		waiting: make(chan struct{}, maxWaiting), following: make(chan struct{}, feeds), turns: make(chan struct{}, maxTurns()),
	}
	for _, p := range projections {
		a.names[p.Describe().Name] = p
	}
	a.document = OpenAPI()
	all := routes()
	mux := http.NewServeMux()
	for _, r := range all {
		mux.HandleFunc(r.pattern(), func(w http.ResponseWriter, req *http.Request) {
			if a.parameters(w, req, r) {
				r.handle(a, w, req)
			}
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		for _, known := range all {
			if !known.matches(r.URL.Path) {
				continue
			}
			allow, hint := "GET, HEAD", "use GET or HEAD"
			if known.verb() != http.MethodGet {
				allow, hint = known.verb(), "use "+known.verb()
			}
			w.Header().Set("Allow", allow)
			a.problem(w, http.StatusMethodNotAllowed, "%s does not accept %s: %s", r.URL.Path, r.Method, hint)
			return
		}
		a.problem(w, http.StatusNotFound, "%s %s does not exist; start at /v1/projections", r.Method, r.URL.Path)
	})
	return mux
}

// parameters reports whether all query parameters are known to the route, given
// once, and not too long. Otherwise it writes the problem.
func (a *api) parameters(w http.ResponseWriter, r *http.Request, known *route) bool {
	if err := codec.CheckText([]byte(r.URL.Path)); err != nil {
		a.problem(w, http.StatusBadRequest, "the path %q: %v", r.URL.Path, err)
		return false
	}
	values := r.URL.Query()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		most := maxText
		if name == "cursor" {
			most = maxCursor
		}
		i := slices.IndexFunc(known.params, func(p param) bool { return p.in == "query" && p.name == name })
		switch {
		case i < 0:
			var names []string
			for _, p := range known.params {
				if p.in == "query" {
					names = append(names, p.name)
				}
			}
			hint := expr.Suggest(name, names)
			if hint == "" && len(names) > 0 {
				hint = "known parameters: " + strings.Join(names, ", ")
			}
			if hint != "" {
				hint = "; " + hint
			}
			a.problem(w, http.StatusBadRequest, "unknown parameter %s%s", name, hint)
			return false
		case len(values[name]) > 1:
			a.problem(w, http.StatusBadRequest, "%s is given %d times", name, len(values[name]))
			return false
		case values[name][0] == "" && known.params[i].kind != "string":
			a.problem(w, http.StatusBadRequest, "%s is empty; leave it out", name)
			return false
		case codec.CheckText([]byte(values[name][0])) != nil:
			a.problem(w, http.StatusBadRequest, "%s: %v", name, codec.CheckText([]byte(values[name][0])))
			return false
		case len(values[name][0]) > most:
			a.problem(w, http.StatusBadRequest, "%s has %d bytes; the limit is %d", name, len(values[name][0]), most)
			return false
		}
	}
	return true
}

// Unready returns a handler that answers every request with status 503 and the
// reason why the API is not available yet.
func Unready(why string) http.Handler {
	a := &api{}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		a.problem(w, http.StatusServiceUnavailable, "%s", why)
	})
}

// described is an entry in the list of projections.
type described struct {
	Description
	Partitions []Position        `json:"partitions" doc:"Progress in each partition, from the worker that has it."`
	Absent     []absentPartition `json:"absent,omitempty" doc:"Partitions with unknown progress. Omitted if there are none."`
}

type absentPartition struct {
	Partition int32  `json:"partition"`
	Detail    string `json:"detail" doc:"Why the progress is unknown: no worker has the partition, or its worker is still catching up."`
}

type indexAnswer struct {
	Projections []described `json:"projections"`
}

func (a *api) index(w http.ResponseWriter, r *http.Request) {
	all := indexAnswer{[]described{}}
	for _, p := range a.projections {
		at, absent, err := p.AllPartitions(r.Context())
		if err != nil {
			a.fail(w, r, err)
			return
		}
		d := described{Description: p.Describe(), Partitions: at}
		for _, n := range slices.Sorted(maps.Keys(absent)) {
			d.Absent = append(d.Absent, absentPartition{n, absent[n]})
		}
		all.Projections = append(all.Projections, d)
	}
	a.answer(w, r, all)
}

// item is an aggregate in an answer.
type item struct {
	ID        string          `json:"id"`
	Version   int64           `json:"version" doc:"Number of events applied."`
	Deleted   bool            `json:"deleted,omitempty" doc:"The aggregate was deleted; its last state is kept."`
	Status    string          `json:"status,omitempty" doc:"blocked: an event cannot be folded, and later events wait; gap: events are missing. Omitted otherwise."`
	EventID   string          `json:"event_id" doc:"Id of the last applied event."`
	EventTime pipeline.Time   `json:"event_time" doc:"Time of that event."`
	Offset    int64           `json:"event_offset" doc:"Offset of that event."`
	Sequence  int64           `json:"sequence,omitempty" doc:"Sequence number of the last applied event that had one. Omitted if none had."`
	State     json.RawMessage `json:"state" doc:"A record of the projection's state schema. Encrypted fields are shown in plaintext."`

	Hidden map[string]string `json:"hidden,omitempty" doc:"Maps the dotted path of an encrypted field that is null to the reason: erased (its data subject was forgotten), no_key, no_kek or tampered."`
	Plain  []string          `json:"plain,omitempty" doc:"Dotted paths of tagged fields whose text is shown, but was never encrypted: it was not protected, and its writer is not known to have the key."`
}

func newItem(d Description, g Aggregate) (item, error) {
	state, shown, err := d.json(d.State, g.State)
	return item{g.ID, g.Version, g.Deleted, g.Status, g.EventID, g.EventTime, g.Offset, g.Sequence, state, shown.Hidden, shown.Plain}, err
}

// made identifies the projection that produced an answer.
type made struct {
	Projection string `json:"projection"`
	Version    string `json:"projection_version" doc:"Hash of the fold. States from different folds are not comparable."`
}

type getAnswer struct {
	made
	Position
	item
	AfterEvent OutcomeState `json:"after_event,omitempty" doc:"applied: the state includes the requested event."`
}

func (a *api) get(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	at, fault := moment(r)
	if fault != "" {
		a.problem(w, http.StatusBadRequest, "%s", fault)
		return
	}
	fresh, ok := a.freshness(w, r)
	if !ok {
		return
	}
	if at != (At{}) && fresh.required() {
		a.problem(w, http.StatusBadRequest, "after_event and min_version apply only to the current state; do not combine them with at_version, at_time or at_recorded_time")
		return
	}
	var g Aggregate
	var err error
	if at != (At{}) {
		g, err = p.GetAt(r.Context(), r.PathValue("id"), at)
	} else if g, ok, err = a.await(w, r, p, fresh); !ok {
		return
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	d := p.Describe()
	it, err := newItem(d, g)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	tag := `"` + d.Version[:min(8, len(d.Version))] + "-" + strconv.FormatInt(g.Version, 10)
	for _, path := range slices.Sorted(maps.Keys(it.Hidden)) {
		tag += "-" + path + "." + it.Hidden[path] // a key can be destroyed without a new version of the state
	}
	tag += `"`
	w.Header().Set("ETag", tag)
	w.Header().Set("Cache-Control", "no-cache")
	if noneMatch(r, tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	out := getAnswer{made: made{d.Name, d.Version}, Position: g.At, item: it}
	if fresh.event.ID != "" {
		out.AfterEvent = Applied
	}
	a.answer(w, r, out)
}

// noneMatch reports whether If-None-Match names the tag.
func noneMatch(r *http.Request, tag string) bool {
	for _, t := range strings.Split(r.Header.Get("If-None-Match"), ",") {
		if t = strings.TrimPrefix(strings.TrimSpace(t), "W/"); t == tag || t == "*" {
			return true
		}
	}
	return false
}

// limit returns the requested page size, or writes the problem.
func (a *api) limit(w http.ResponseWriter, r *http.Request) (int, bool) {
	text := r.URL.Query().Get("limit")
	if text == "" {
		return defaultLimit, true
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxLimit {
		a.problem(w, http.StatusBadRequest, "limit=%s: want a number from 1 to %d", text, maxLimit)
		return 0, false
	}
	return n, true
}

// projection returns the projection that the path names, or writes the problem and
// returns nil.
func (a *api) projection(w http.ResponseWriter, r *http.Request) Projection {
	name := r.PathValue("name")
	p := a.names[name]
	if p == nil {
		hint := expr.Suggest(name, slices.Collect(maps.Keys(a.names)))
		if hint == "" {
			hint = "/v1/projections lists them"
		}
		a.problem(w, http.StatusNotFound, "unknown projection %q; %s", name, hint)
	}
	return p
}

// gzipFrom is the minimum size in bytes of a compressed answer.
const gzipFrom = 4 << 10

func (a *api) answer(w http.ResponseWriter, r *http.Request, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		a.log.Error("cannot encode an answer", "err", err)
		a.problem(w, http.StatusInternalServerError, "cannot encode the answer: %v", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	a.write(w, r, append(body, '\n'))
}

func (a *api) write(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Add("Vary", "Accept-Encoding")
	if len(body) < gzipFrom || !acceptsGzip(r) {
		_, _ = w.Write(body) // an error means that the client disconnected
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		panic(err) // cannot happen: the level is valid
	}
	_, _ = z.Write(body) // an error means that the client disconnected
	_ = z.Close()
}

func acceptsGzip(r *http.Request) bool {
	for _, e := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(e), ";")
		if strings.TrimSpace(name) == "gzip" && strings.Trim(strings.TrimPrefix(strings.TrimSpace(q), "q="), "0.") != "" || strings.TrimSpace(e) == "gzip" {
			return true
		}
	}
	return false
}

// fail writes the problem for an error of a [Projection].
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, ErrNotFound):
		if err.Error() != ErrNotFound.Error() { // it says more
			a.problem(w, http.StatusNotFound, "%s: %v", r.PathValue("name"), err)
			return
		}
		a.problem(w, http.StatusNotFound, "%s has no aggregate %q", r.PathValue("name"), r.PathValue("id"))
	case errors.Is(err, ErrEventID):
		a.problem(w, http.StatusBadRequest, "%v", err)
	case errors.Is(err, ErrNoVersion), errors.Is(err, ErrNoHistory):
		a.problem(w, http.StatusNotFound, "%v", err)
	case errors.Is(err, ErrElsewhere), errors.Is(err, ErrMoved):
		w.Header().Set("Retry-After", "1")
		a.problem(w, http.StatusMisdirectedRequest, "%v", err)
	case errors.Is(err, ErrAhead):
		a.problem(w, http.StatusBadRequest, "Last-Event-ID: %v", err)
	case errors.Is(err, ErrBusy), errors.Is(err, ErrFilling):
		w.Header().Set("Retry-After", "1")
		a.problem(w, http.StatusServiceUnavailable, "%v", err)
	case errors.Is(err, ErrUnanswered):
		a.problem(w, http.StatusGatewayTimeout, "%v", err)
	case r.Context().Err() != nil:
		a.problem(w, http.StatusServiceUnavailable, "the request was canceled: %v", err)
	default:
		a.log.Error("request failed", "path", r.URL.Path, "err", err)
		a.problem(w, http.StatusInternalServerError, "%v", err)
	}
}

// problemAnswer is an error in the format of RFC 9457. The problem type is always
// "about:blank", so the status is the only type. Details for programs are in
// extension members.
type problemAnswer struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`

	Outcome  OutcomeState `json:"outcome,omitempty" doc:"Known outcome of the requested event."`
	Sequence int64        `json:"sequence,omitempty" doc:"With the outcome conflict: the sequence number of the requested event."`
	Winner   string       `json:"winner,omitempty" doc:"With the outcome conflict: id of the event that was applied with that number."`
	Current  *getAnswer   `json:"current,omitempty" doc:"With the outcome conflict: the aggregate."`
	Pipeline string       `json:"pipeline,omitempty" doc:"Pipeline that filtered the event or made it a dead letter."`
	Stage    string       `json:"stage,omitempty" doc:"Stage of that pipeline; decode comes before the first stage, encode after the last."`
	Reason   string       `json:"reason,omitempty" doc:"Reason code of the dead letter."`
	Faults   []fault      `json:"faults,omitempty" doc:"Faults in the filter, with their places."`
}

// fault is a fault in a parameter.
type fault struct {
	Parameter string `json:"parameter"`
	Offset    int    `json:"offset" doc:"Place in the parameter, in characters from its start."`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
}

func (a *api) problem(w http.ResponseWriter, status int, format string, args ...any) {
	a.writeProblem(w, problemAnswer{Status: status, Detail: fmt.Sprintf(format, args...)})
}

func (a *api) writeProblem(w http.ResponseWriter, p problemAnswer) {
	p.Title = http.StatusText(p.Status)
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // cannot happen: only strings and numbers
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // an error means that the client disconnected
}
