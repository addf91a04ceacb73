// Package query is the HTTP API of projections: the state of an aggregate now and
// then, lists, histories, and changes as they happen. It asks for what it needs
// through [Projection] and knows neither Kafka nor how states are kept.
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
// A question about now may name an event that the answer has to contain
// (after_event), or a version that it must not be older than (min_version), and
// how long it waits for that.
//
// Every answer says which fold made it, and up to which offset of which
// partition it has seen, with how far that is behind. Errors are problems as in
// RFC 9457. A parameter that is not known is an error.
//
// Start at [Handler]; routes.go is the list of all there is, from which the
// OpenAPI document is made.
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

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// A Projection answers for the partitions of its topic. An error is ErrElsewhere
// if it cannot for all that a question is about: it never answers with a part.
type Projection interface {
	Describe() Description
	// Partitions returns how far each of those is that this worker has.
	Partitions() []Position
	// AllPartitions returns how far each partition is, whichever worker has it, and of
	// which nobody can tell, with why.
	AllPartitions(ctx context.Context) (at []Position, absent map[int32]string, err error)
	// Get returns an aggregate. An error is ErrNotFound or ErrElsewhere, or
	// else a failure.
	Get(ctx context.Context, id string) (Aggregate, error)
	// Scan calls f with the aggregates whose ids come after a given one, in order
	// of their ids, until it returns false, and returns how far the partitions
	// were. State is valid during the call alone.
	Scan(ctx context.Context, after string, f func(Aggregate) bool) ([]Position, error)

	// GetAt returns an aggregate as it was. An error may be ErrNoVersion, and
	// like those that follow, ErrNoHistory.
	GetAt(ctx context.Context, id string, at At) (Aggregate, error)
	// History returns the events of an aggregate, the last first, limit at most,
	// that made versions below before; 0 means all.
	History(ctx context.Context, id string, before int64, limit int) ([]Event, error)
	// Why returns which event last changed each field of an aggregate.
	Why(ctx context.Context, id string) (Why, error)
	// Diff returns an aggregate as of two versions, and the dotted paths of the
	// fields in which they differ. Version 0 is before its first event; 0 as the
	// second version means the latest, and -1 as the first the one before the
	// second.
	Diff(ctx context.Context, id string, from, to int64) (a, b Aggregate, fields []string, err error)
	// Types are the event types that are folded.
	Types() []*codec.Schema
	// Event returns an event that was applied, by its id.
	Event(ctx context.Context, id string) (Event, error)
	// Events returns those applied of a type, by its full name, the latest by
	// event time first, that come before a cursor (nil: all), and how far the
	// partitions were.
	Events(ctx context.Context, typ string, before *EventCursor, limit int) ([]Event, []Position, error)

	// Blocked returns the aggregates that wait for a release, the longest first,
	// that come after a cursor (nil: all).
	Blocked(ctx context.Context, after *EventCursor, limit int) ([]BlockedAggregate, error)
	// Release folds again what a blocked aggregate missed; skip leaves out the
	// event at which it was blocked. An error may be ErrNotFound, ErrNotBlocked,
	// ErrBusy or ErrUnanswered.
	Release(ctx context.Context, id string, skip bool) (Released, error)

	// Outcome returns what this worker knows to have become of an event.
	Outcome(ctx context.Context, e Sought) (Outcome, error)
	// Changed returns a channel that is closed when that may be something else.
	Changed() <-chan struct{}
	// Await returns what is known to have become of an event, wherever that is known. It
	// waits for so long while that may change yet.
	Await(ctx context.Context, e Sought, wait time.Duration) (Outcome, error)
	// Follow calls f with changes until the context ends, f returns an error or
	// nothing more can follow (ErrMoved, ErrSlow, ErrAhead). First it tells from
	// where on each partition is followed. Of a partition, changes come in the
	// order of the log; those of two partitions come in any order.
	Follow(ctx context.Context, start Start, f func(Changes) error) error
}

// At is a moment of an aggregate's past: one of the three. A time means the state
// before the first event that is later.
type At struct {
	Version  int64
	Time     time.Time // by the events' own timestamps
	Recorded time.Time // by the timestamps of their records
}

// A Why says where the state of an aggregate comes from.
type Why struct {
	Aggregate Aggregate
	// Fields has, by dotted path, the event that last changed the field. What was
	// never changed has its default, and no event.
	Fields map[string]Event
	// Before is 0 if the whole history was looked at, or all that matters; else
	// the fields of Unknown were last changed by an event below that version, or
	// never.
	Before  int64
	Unknown []string
}

// An Event is one that was applied.
type Event struct {
	ID        string
	Type      *codec.Schema
	Time      time.Time
	Recorded  time.Time
	Topic     string
	Partition int32
	Offset    int64
	Aggregate string
	Version   int64 // that it made of the aggregate
	Body      []byte
}

// A Sought is an event of which somebody wants to know what became of it.
type Sought struct {
	ID string
	// Next is the offset behind it, in that partition; 0 if it is not known where it
	// stands.
	Partition int32
	Next      int64
}

// An Outcome is what became of an event in a projection, as far as is known.
type Outcome struct {
	State     OutcomeState
	Aggregate string // if it is known whose event it is
	Version   int64  // that it made, if it was applied
	Detail    string // for people: why

	// Of one that did not come out of a pipeline: which, where in it, and why.
	Pipeline, Stage, Reason string
	// Open says that this may yet change for the better, soon.
	Open bool
}

// Final reports whether there is nothing left to wait for.
func (o *Outcome) Final() bool { return o.State != Pending && !o.Open }

// OutcomeState is a constant word of the API.
type OutcomeState string

const (
	// Applied: the state has it.
	Applied OutcomeState = "applied"
	// Pending: it was not seen here, yet or ever.
	Pending OutcomeState = "pending"
	// Rejected: it is bad, and will never be applied.
	Rejected OutcomeState = "rejected"
	// Late: its aggregate was deleted before.
	Late OutcomeState = "late"
	// Filtered: a pipeline on the way to the projection dropped it on purpose.
	Filtered OutcomeState = "filtered"
	// DeadLetter: a pipeline on the way to the projection could not process it.
	DeadLetter OutcomeState = "dead_letter"
	// Blocked: it was not seen to be applied, and its aggregate is blocked.
	Blocked OutcomeState = "blocked"
	// Passed: its place in the log was passed, and it was not applied.
	Passed OutcomeState = "passed"
)

// A Start says from where changes are followed.
type Start struct {
	ID string // of one aggregate; "" means all
	// From gives the offset from which on changes are wanted, by partition. If it
	// is not empty, those not in it are followed from their beginning: they are
	// newer than whoever wrote it down.
	From map[int32]int64
	// Beginning means all there is, first.
	Beginning bool
}

// Changes are changes of one partition.
type Changes struct {
	Aggregates []Aggregate
	// Next says, of each of them, from where to go on after it. If it is nil, that
	// can be said only after all of them.
	Next []int64
	// At is how far the partition is with these changes; if More is set, there
	// are more to come before it is so far.
	At   Position
	More bool
	// Quiet says that nothing has changed: the position is told for its own sake.
	Quiet bool
	// Stalled, if not nil, are all partitions of which nothing can be told for
	// now; the other members say nothing then.
	Stalled []Stall
}

// A Stall is a partition of which nothing can be told for now, and why.
type Stall struct {
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset" doc:"From where it goes on, once it does."`
	Detail    string `json:"detail" doc:"Why nothing comes from it."`
}

// A BlockedAggregate has an event that cannot be folded, or a gap; its later events
// wait.
type BlockedAggregate struct {
	ID        string    `json:"id"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset" doc:"Of the event that cannot be folded."`
	Time      time.Time `json:"time" doc:"Of that event's record."`
	Reason    string    `json:"reason"`
	Error     string    `json:"error"`
	Queued    int64     `json:"queued" doc:"How many later events wait."`
	Last      int64     `json:"last,omitempty" doc:"Offset of the last of them; left out if none waits."`
}

// Cursor is its place in the list of them.
func (b *BlockedAggregate) Cursor() EventCursor {
	return EventCursor{b.Time.UnixMicro(), b.Partition, b.Offset}
}

// Released says what a release came to.
type Released struct {
	Events  int               `json:"events" doc:"That were folded again, or skipped."`
	Blocked *BlockedAggregate `json:"blocked,omitempty" doc:"If it is blocked again: at the first event that still cannot be folded."`
}

// An EventCursor is a place in a list of events.
type EventCursor struct {
	Time      int64 // of the event, in microseconds since 1970
	Partition int32
	Offset    int64
}

// Compare compares two places, the later is the greater.
func (c EventCursor) Compare(d EventCursor) int {
	return cmp.Or(cmp.Compare(c.Time, d.Time), cmp.Compare(c.Partition, d.Partition), cmp.Compare(c.Offset, d.Offset))
}

// Errors of a [Projection].
var (
	ErrNotFound   = errors.New("there is no such aggregate")
	ErrElsewhere  = errors.New("another worker has the partition")
	ErrNoVersion  = errors.New("there is no such version")
	ErrNoHistory  = errors.New("this worker keeps no history; it runs with --no-history")
	ErrMoved      = errors.New("partitions came to this worker or went to another")
	ErrSlow       = errors.New("the reader is too slow")
	ErrAhead      = errors.New("the id of a message is of another log")
	ErrNotBlocked = errors.New("it is not blocked")
	ErrBusy       = errors.New("try again")
	ErrUnanswered = errors.New("whether it was done is not known")
)

// A Description says what a projection is.
type Description struct {
	Name      string        `json:"name"`
	Version   string        `json:"projection_version" doc:"Hash of the fold: states made under another are not comparable."`
	Topic     string        `json:"topic" doc:"Of the events."`
	Snapshots string        `json:"snapshots" doc:"Topic of the snapshots."`
	State     *codec.Schema `json:"-"`

	// Show returns a record as it is shown, where fields of it are encrypted. It is
	// nil where none are.
	Show func(s *codec.Schema, body []byte) (Shown, error) `json:"-"`
}

// A Shown is a record with its encrypted fields in plaintext.
type Shown struct {
	Type   *codec.Node
	Body   []byte
	Hidden map[string]string // by dotted path, why a field is null that could not be read
}

// json returns a record as JSON, and what could not be shown of it.
func (d *Description) json(s *codec.Schema, body []byte) (text json.RawMessage, hidden map[string]string, err error) {
	shown := Shown{Type: s.Root(), Body: body}
	if d.Show != nil {
		if shown, err = d.Show(s, body); err != nil {
			return nil, nil, err
		}
	}
	text, err = codec.AppendJSON(nil, shown.Type, shown.Body)
	return text, shown.Hidden, err
}

// A Position is how far a partition was folded.
type Position struct {
	Partition int32 `json:"partition" doc:"Of the events' topic."`
	Offset    int64 `json:"offset" doc:"Next to be folded: the answer has seen all below."`
	Lag       int64 `json:"lag" doc:"Offsets from there to the log's end."`
	// Seconds is how old the last record folded is, 0 if the lag is 0, and nil if
	// that is not known.
	Seconds *float64 `json:"lag_seconds,omitempty" doc:"Age of the last record folded; 0 if there is no lag. Left out while it is not known."`
}

// An Aggregate is its state, and where that comes from.
type Aggregate struct {
	ID        string
	Version   int64
	Deleted   bool
	Status    string // as of its snapshot; "" if there is nothing to say of it
	EventID   string // the last applied
	EventTime time.Time
	Offset    int64  // where it stands
	State     []byte // Avro
	At        Position
}

// Limits of what can be asked.
const (
	defaultLimit = 100
	maxLimit     = 1000
	maxWait      = 30 * time.Second
	maxText      = 4 << 10 // bytes of one parameter
	maxCursor    = 16 << 10
	maxScanned   = 200_000 // aggregates looked at for one page
	maxWaiting   = 256     // requests that wait for an event
	maxFollowers = 64      // feeds
)

// api is the handler.
type api struct {
	projections []Projection
	names       map[string]Projection
	log         *slog.Logger
	document    []byte // OpenAPI
	filters     filters
	waiting     chan struct{} // a token for each request that waits
	following   chan struct{} // a token for each feed
}

// Handler returns the API of the projections, for paths that begin with /v1/.
func Handler(log *slog.Logger, projections ...Projection) http.Handler {
	a := &api{
		projections: projections, names: map[string]Projection{}, log: log,
		waiting: make(chan struct{}, maxWaiting), following: make(chan struct{}, maxFollowers),
	}
	for _, p := range projections {
		a.names[p.Describe().Name] = p
	}
	a.document = OpenAPI()
	all := routes()
	mux := http.NewServeMux()
	for _, r := range all {
		mux.HandleFunc(r.verb()+" "+r.path, func(w http.ResponseWriter, req *http.Request) {
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
			allow, hint := "GET, HEAD", "questions are asked with GET or HEAD"
			if known.verb() != http.MethodGet {
				allow, hint = known.verb(), "it takes "+known.verb()
			}
			w.Header().Set("Allow", allow)
			a.problem(w, http.StatusMethodNotAllowed, "%s is not for %s: %s", r.URL.Path, r.Method, hint)
			return
		}
		a.problem(w, http.StatusNotFound, "there is nothing at %s %s; begin at /v1/projections", r.Method, r.URL.Path)
	})
	return mux
}

// parameters refuses a request with parameters that the route does not have, or
// that are given twice or too long.
func (a *api) parameters(w http.ResponseWriter, r *http.Request, known *route) bool {
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
			hint := expr.Nearest(name, names)
			if hint == "" && len(names) > 0 {
				hint = "there are " + strings.Join(names, ", ")
			}
			if hint != "" {
				hint = "; " + hint
			}
			a.problem(w, http.StatusBadRequest, "there is no parameter %s here%s", name, hint)
			return false
		case len(values[name]) > 1:
			a.problem(w, http.StatusBadRequest, "%s is given %d times", name, len(values[name]))
			return false
		case len(values[name][0]) > most:
			a.problem(w, http.StatusBadRequest, "%s has %d bytes, at most %d are taken", name, len(values[name][0]), most)
			return false
		}
	}
	return true
}

// Unready returns a handler that says why there are no answers yet.
func Unready(why string) http.Handler {
	a := &api{}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		a.problem(w, http.StatusServiceUnavailable, "%s", why)
	})
}

// described is a projection in the list of them.
type described struct {
	Description
	Partitions []Position        `json:"partitions" doc:"How far each partition is, whichever worker has it."`
	Absent     []absentPartition `json:"absent,omitempty" doc:"Partitions of which nobody can tell that. Left out if there is none."`
}

type absentPartition struct {
	Partition int32  `json:"partition"`
	Detail    string `json:"detail" doc:"Why: no worker has it, or the one that does has yet to catch up."`
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
	Deleted   bool            `json:"deleted,omitempty" doc:"It was deleted; its last state is kept."`
	Status    string          `json:"status,omitempty" doc:"blocked: an event of it cannot be folded, and those after it wait; gap: events of it are missing. Left out if all is well."`
	EventID   string          `json:"event_id" doc:"Last event applied."`
	EventTime time.Time       `json:"event_time" doc:"When that happened."`
	Offset    int64           `json:"event_offset" doc:"Where that stands."`
	State     json.RawMessage `json:"state" doc:"A record of the projection's state schema. Encrypted fields are shown in plaintext."`

	Hidden map[string]string `json:"hidden,omitempty" doc:"By dotted path, why an encrypted field is null: erased (its subject was forgotten), no_key, no_kek or tampered."`
}

func newItem(d Description, g Aggregate) (item, error) {
	state, hidden, err := d.json(d.State, g.State)
	return item{g.ID, g.Version, g.Deleted, g.Status, g.EventID, g.EventTime.UTC(), g.Offset, state, hidden}, err
}

// made says which projection an answer is of.
type made struct {
	Projection string `json:"projection"`
	Version    string `json:"projection_version" doc:"Hash of the fold: states made under another are not comparable."`
}

type getAnswer struct {
	made
	Position
	item
	AfterEvent OutcomeState `json:"after_event,omitempty" doc:"applied: the state has the event that was asked for."`
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
	if at != (At{}) && fresh.asked() {
		a.problem(w, http.StatusBadRequest, "after_event and min_version are for the state as it is now; leave out at_version and the times, or them")
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
		tag += "-" + path + "." + it.Hidden[path] // what was read before may not be any more
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

// limit returns how many items are wanted, or says what is wrong with that.
func (a *api) limit(w http.ResponseWriter, r *http.Request) (int, bool) {
	text := r.FormValue("limit")
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

// projection returns the one that the path names, or says that there is none.
func (a *api) projection(w http.ResponseWriter, r *http.Request) Projection {
	name := r.PathValue("name")
	p := a.names[name]
	if p == nil {
		hint := expr.Nearest(name, slices.Collect(maps.Keys(a.names)))
		if hint == "" {
			hint = "/v1/projections lists them"
		}
		a.problem(w, http.StatusNotFound, "there is no projection %q; %s", name, hint)
	}
	return p
}

// gzipFrom is the size from which on an answer is worth compressing.
const gzipFrom = 4 << 10

func (a *api) answer(w http.ResponseWriter, r *http.Request, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		a.log.Error("an answer cannot be made", "err", err)
		a.problem(w, http.StatusInternalServerError, "the answer cannot be made: %v", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	a.write(w, r, append(body, '\n'))
}

func (a *api) write(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Add("Vary", "Accept-Encoding")
	if len(body) < gzipFrom || !acceptsGzip(r) {
		_, _ = w.Write(body) // whoever asked has gone
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is one
	}
	_, _ = z.Write(body) // whoever asked has gone
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

// fail answers with an error of a [Projection].
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, ErrNotFound):
		a.problem(w, http.StatusNotFound, "%s has no aggregate %q", r.PathValue("name"), r.PathValue("id"))
	case errors.Is(err, ErrNoVersion), errors.Is(err, ErrNoHistory):
		a.problem(w, http.StatusNotFound, "%v", err)
	case errors.Is(err, ErrElsewhere), errors.Is(err, ErrMoved):
		w.Header().Set("Retry-After", "1")
		a.problem(w, http.StatusMisdirectedRequest, "%v", err)
	case errors.Is(err, ErrAhead):
		a.problem(w, http.StatusBadRequest, "Last-Event-ID: %v", err)
	case errors.Is(err, ErrBusy):
		w.Header().Set("Retry-After", "1")
		a.problem(w, http.StatusServiceUnavailable, "%v", err)
	case errors.Is(err, ErrUnanswered):
		a.problem(w, http.StatusGatewayTimeout, "%v", err)
	case r.Context().Err() != nil:
		a.problem(w, http.StatusServiceUnavailable, "the request was given up: %v", err)
	default:
		a.log.Error("a question cannot be answered", "path", r.URL.Path, "err", err)
		a.problem(w, http.StatusInternalServerError, "%v", err)
	}
}

// problemAnswer is an error as in RFC 9457. There are no types of problems
// beside the status ("about:blank"); what a program may want to know stands in
// members of its own.
type problemAnswer struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`

	Outcome  OutcomeState `json:"outcome,omitempty" doc:"What is known of the event that was to be waited for."`
	Pipeline string       `json:"pipeline,omitempty" doc:"That filtered the event, or made it a dead letter."`
	Stage    string       `json:"stage,omitempty" doc:"Of the pipeline; decode and encode are before the first and behind the last."`
	Reason   string       `json:"reason,omitempty" doc:"Why the event is a dead letter: a code."`
	Faults   []fault      `json:"faults,omitempty" doc:"What is wrong in the filter, and where."`
}

// fault is one fault in a parameter.
type fault struct {
	Parameter string `json:"parameter"`
	Offset    int    `json:"offset" doc:"In characters from its start."`
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
		panic(err) // strings and numbers
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // whoever asked has gone
}
