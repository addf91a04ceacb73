package query

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// moment returns the moment of the past that a request asks about, the zero At if
// it asks about now.
func moment(r *http.Request) (at At, fault string) {
	given := 0
	if text := r.FormValue("at_version"); text != "" {
		given++
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			return at, fmt.Sprintf("at_version=%s: want a number of 1 or more", text)
		}
		at.Version = n
	}
	for name, to := range map[string]*time.Time{"at_time": &at.Time, "at_recorded_time": &at.Recorded} {
		text := r.FormValue(name)
		if text == "" {
			continue
		}
		given++
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return at, fmt.Sprintf("%s=%s: want a time as 2006-01-02T15:04:05Z (RFC 3339)", name, text)
		}
		*to = t
	}
	if given > 1 {
		return at, "at_version, at_time and at_recorded_time: give one of them"
	}
	return at, ""
}

// eventItem is an event in an answer.
type eventItem struct {
	ID         string          `json:"id"`
	Type       string          `json:"type"`
	Time       time.Time       `json:"time"`
	Recorded   time.Time       `json:"recorded_time"`
	Projection string          `json:"projection"`
	Aggregate  string          `json:"aggregate"`
	Version    int64           `json:"version" doc:"That it made of the aggregate."`
	Topic      string          `json:"topic"`
	Partition  int32           `json:"partition"`
	Offset     int64           `json:"offset"`
	Event      json.RawMessage `json:"event,omitempty"`

	Hidden map[string]string `json:"hidden,omitempty" doc:"By dotted path, why an encrypted field of the event is null."`
}

// newEventItem leaves the event itself out if brief is set.
func newEventItem(d Description, e Event, brief bool) (eventItem, error) {
	it := eventItem{
		ID: e.ID, Type: shortName(e.Type), Time: e.Time.UTC(), Recorded: e.Recorded.UTC(), Projection: d.Name, Aggregate: e.Aggregate,
		Version: e.Version, Topic: e.Topic, Partition: e.Partition, Offset: e.Offset,
	}
	if brief {
		return it, nil
	}
	var err error
	it.Event, it.Hidden, err = d.json(e.Type, e.Body)
	return it, err
}

// shortName is a type's name without its namespace, as in topology.yaml.
func shortName(s *codec.Schema) string {
	return s.Name()[strings.LastIndexByte(s.Name(), '.')+1:]
}

type historyAnswer struct {
	made
	ID         string      `json:"id"`
	Items      []eventItem `json:"items" doc:"The last first."`
	Before     int64       `json:"next_before,omitempty" doc:"Gives the next page, as before; left out if this is the last."`
	Partitions []Position  `json:"partitions"`
}

func (a *api) history(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	limit, ok := a.limit(w, r)
	if !ok {
		return
	}
	before, ok := a.version(w, r, "before", 0, 1)
	if !ok {
		return
	}
	events, err := p.History(r.Context(), r.PathValue("id"), before, limit)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	d := p.Describe()
	out := historyAnswer{made: made{d.Name, d.Version}, ID: r.PathValue("id"), Partitions: p.Partitions()}
	if out.Items, err = newEventItems(d, events); err != nil {
		a.fail(w, r, err)
		return
	}
	if n := len(events); n == limit && events[n-1].Version > 1 {
		out.Before = events[n-1].Version
	}
	a.answer(w, r, out)
}

// version returns a parameter that is a version of an aggregate.
func (a *api) version(w http.ResponseWriter, r *http.Request, name string, missing, least int64) (int64, bool) {
	text := r.FormValue(name)
	if text == "" {
		return missing, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least {
		a.problem(w, http.StatusBadRequest, "%s=%s: want a version, a number of %d or more", name, text, least)
		return 0, false
	}
	return n, true
}

type whyAnswer struct {
	made
	Position
	item
	Fields  map[string]eventItem `json:"fields" doc:"By dotted path, the event that last changed the field. A field that never changed is not there."`
	Unknown []string             `json:"unknown,omitempty" doc:"Fields whose last change lies before unknown_before: the history is longer than is looked at."`
	Before  int64                `json:"unknown_before,omitempty" doc:"The version from which on the history was looked at; left out if that was all that matters."`
}

func (a *api) why(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	why, err := p.Why(r.Context(), r.PathValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	d := p.Describe()
	it, err := newItem(d, why.Aggregate)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	fields := map[string]eventItem{}
	for path, e := range why.Fields {
		if fields[path], err = newEventItem(d, e, true); err != nil {
			a.fail(w, r, err)
			return
		}
	}
	a.answer(w, r, whyAnswer{made{d.Name, d.Version}, why.Aggregate.At, it, fields, why.Unknown, why.Before})
}

type diffAnswer struct {
	made
	Position
	ID     string                 `json:"id"`
	From   side                   `json:"from"`
	To     side                   `json:"to"`
	Fields map[string]changedItem `json:"fields" doc:"By dotted path, the fields that differ."`
	Hidden map[string]string      `json:"hidden,omitempty" doc:"By dotted path, why an encrypted field is null."`
}

// side is one of the two states that are compared.
type side struct {
	Version   int64      `json:"version" doc:"0: before the first event."`
	Deleted   bool       `json:"deleted,omitempty"`
	EventID   string     `json:"event_id,omitempty" doc:"That made it."`
	EventTime *time.Time `json:"event_time,omitempty"`
}

func newSide(g Aggregate) side {
	s := side{Version: g.Version, Deleted: g.Deleted, EventID: g.EventID}
	if g.Version > 0 {
		t := g.EventTime.UTC()
		s.EventTime = &t
	}
	return s
}

// changedItem is a field in two states.
type changedItem struct {
	From json.RawMessage `json:"from,omitempty" doc:"Left out before the first event."`
	To   json.RawMessage `json:"to"`
}

func (a *api) diff(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	from, ok := a.version(w, r, "from", -1, 0)
	if !ok {
		return
	}
	to, ok := a.version(w, r, "to", 0, 1)
	if !ok {
		return
	}
	if to > 0 && from > to {
		a.problem(w, http.StatusBadRequest, "from=%d is after to=%d: the older version comes first", from, to)
		return
	}
	before, after, paths, err := p.Diff(r.Context(), r.PathValue("id"), from, to)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	d := p.Describe()
	out := diffAnswer{made: made{d.Name, d.Version}, Position: after.At, ID: r.PathValue("id"), From: newSide(before), To: newSide(after), Fields: map[string]changedItem{}}
	old, _, err := tree(d, before)
	if err == nil {
		var now any
		if now, out.Hidden, err = tree(d, after); err == nil {
			for _, path := range paths {
				var c changedItem
				if before.Version > 0 {
					c.From, err = valueAt(old, path)
				}
				var err2 error
				c.To, err2 = valueAt(now, path)
				if err = errors.Join(err, err2); err != nil {
					break
				}
				if d.Show != nil && out.Hidden[path] == "" && bytes.Equal(c.From, c.To) {
					continue // another ciphertext of the same
				}
				out.Fields[path] = c
			}
		}
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.answer(w, r, out)
}

// tree returns a state as what JSON makes of it, numbers as they are written.
func tree(d Description, g Aggregate) (v any, hidden map[string]string, err error) {
	if g.Version == 0 {
		return nil, nil, nil
	}
	text, hidden, err := d.json(d.State, g.State)
	if err != nil {
		return nil, nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	err = dec.Decode(&v)
	return v, hidden, err
}

// valueAt returns the value at a dotted path through objects.
func valueAt(v any, path string) (json.RawMessage, error) {
	for _, name := range strings.Split(path, ".") {
		o, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("a state has nothing at %s", path)
		}
		v = o[name]
	}
	return json.Marshal(v)
}

type eventAnswer struct {
	Applied []eventItem `json:"applied" doc:"One for each projection that applied it."`
}

// event looks in all projections: one event may be applied in several.
func (a *api) event(w http.ResponseWriter, r *http.Request) {
	var out eventAnswer
	var failed error
	for _, p := range a.projections {
		e, err := p.Event(r.Context(), r.PathValue("id"))
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		it, err := newEventItem(p.Describe(), e, false)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		out.Applied = append(out.Applied, it)
	}
	switch {
	case len(out.Applied) > 0:
		a.answer(w, r, out)
	case errors.Is(failed, ErrNotFound):
		answer := problemAnswer{Status: http.StatusNotFound, Detail: fmt.Sprintf("no event %q was applied to an aggregate that this worker has", r.PathValue("id"))}
		for _, p := range a.projections {
			if o, err := p.Outcome(r.Context(), Sought{ID: r.PathValue("id")}); err == nil && o.State != Pending {
				answer.Outcome, answer.Pipeline, answer.Stage, answer.Reason = o.State, o.Pipeline, o.Stage, o.Reason
				said := o.Detail
				if o.Pipeline == "" {
					said = fmt.Sprintf("by %s it was %s: %s", p.Describe().Name, o.State, o.Detail)
				}
				if !strings.Contains(answer.Detail, said) { // of several projections behind one pipeline
					answer.Detail += "; " + said
				}
			}
		}
		a.writeProblem(w, answer)
	default:
		a.fail(w, r, failed)
	}
}

type eventsAnswer struct {
	made
	Items      []eventItem `json:"items" doc:"The latest by event time first."`
	Next       string      `json:"next_cursor,omitempty" doc:"Gives the next page; left out if this is the last."`
	Partitions []Position  `json:"partitions"`
}

func (a *api) events(w http.ResponseWriter, r *http.Request) {
	limit, ok := a.limit(w, r)
	if !ok {
		return
	}
	before, ok := parseEventCursor(r.FormValue("cursor"))
	if !ok {
		a.problem(w, http.StatusBadRequest, "cursor: want the next_cursor of an answer, or none")
		return
	}
	// The first projection that folds the type has them all.
	p, typ := a.folding(r.FormValue("type"))
	if p == nil {
		hint := expr.Nearest(r.FormValue("type"), a.typeNames())
		if hint != "" {
			hint = "; " + hint
		}
		a.problem(w, http.StatusBadRequest, "type=%s: want the type of events, one of %s%s", r.FormValue("type"), strings.Join(a.typeNames(), ", "), hint)
		return
	}
	events, at, err := p.Events(r.Context(), typ, before, limit)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	d := p.Describe()
	out := eventsAnswer{made: made{d.Name, d.Version}, Partitions: at}
	if out.Items, err = newEventItems(d, events); err != nil {
		a.fail(w, r, err)
		return
	}
	if n := len(events); n == limit {
		last := events[n-1]
		out.Next = EventCursor{last.Time.UnixMicro(), last.Partition, last.Offset}.text()
	}
	a.answer(w, r, out)
}

func newEventItems(d Description, events []Event) (_ []eventItem, err error) {
	items := make([]eventItem, len(events))
	for i, e := range events {
		if items[i], err = newEventItem(d, e, false); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// folding returns the first projection that folds a type, given with or without
// its namespace, and the full name.
func (a *api) folding(name string) (Projection, string) {
	for _, p := range a.projections {
		for _, t := range p.Types() {
			if t.Name() == name || shortName(t) == name {
				return p, t.Name()
			}
		}
	}
	return nil, ""
}

func (a *api) typeNames() (names []string) {
	for _, p := range a.projections {
		for _, t := range p.Types() {
			names = append(names, shortName(t))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (c EventCursor) text() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %d %d", c.Time, c.Partition, c.Offset))
}

func parseEventCursor(text string) (*EventCursor, bool) {
	if text == "" {
		return nil, true
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	var c EventCursor
	if err == nil {
		_, err = fmt.Sscanf(string(raw), "%d %d %d", &c.Time, &c.Partition, &c.Offset)
	}
	return &c, err == nil
}
