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

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// moment returns the past moment that a request names, or the zero At for the current
// state. fault describes an invalid parameter.
func moment(r *http.Request) (at At, fault string) {
	given := 0
	if text := r.URL.Query().Get("at_version"); text != "" {
		given++
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			return at, fmt.Sprintf("at_version=%s: want a number of 1 or more", text)
		}
		at.Version = n
	}
	for _, clock := range []struct {
		name string
		to   *time.Time
	}{{"at_time", &at.Time}, {"at_recorded_time", &at.Recorded}} {
		text := r.URL.Query().Get(clock.name)
		if text == "" {
			continue
		}
		given++
		t, err := pipeline.ParseTime(text)
		if err != nil {
			return at, fmt.Sprintf("%s: %v", clock.name, err)
		}
		*clock.to = t.Std()
	}
	if given > 1 {
		return at, "at_version, at_time and at_recorded_time exclude each other; give one"
	}
	return at, ""
}

// eventItem is an event in an answer.
type eventItem struct {
	ID         string          `json:"id"`
	Type       string          `json:"type"`
	Time       pipeline.Time   `json:"time"`
	Recorded   pipeline.Time   `json:"recorded_time"`
	Projection string          `json:"projection"`
	Aggregate  string          `json:"aggregate"`
	Version    int64           `json:"version" doc:"Version of the aggregate after the event."`
	Sequence   int64           `json:"sequence,omitempty" doc:"Sequence number of the event. Omitted if it has none."`
	Topic      string          `json:"topic"`
	Partition  int32           `json:"partition"`
	Offset     int64           `json:"offset"`
	Event      json.RawMessage `json:"event,omitempty"`

	Hidden map[string]string `json:"hidden,omitempty" doc:"Maps the dotted path of an encrypted field that is null to the reason."`
	Plain  []string          `json:"plain,omitempty" doc:"Dotted paths of tagged fields whose text was never encrypted."`
}

// newEventItem converts an event. brief leaves out the event's body.
func newEventItem(d Description, e Event, brief bool) (eventItem, error) {
	it := eventItem{
		ID: e.ID, Type: shortName(e.Type), Time: e.Time, Recorded: e.Recorded, Projection: d.Name, Aggregate: e.Aggregate,
		Version: e.Version, Sequence: e.Sequence, Topic: e.Topic, Partition: e.Partition, Offset: e.Offset,
	}
	if brief || e.Type == nil {
		return it, nil
	}
	text, shown, err := d.json(e.Type, e.Body)
	it.Event, it.Hidden, it.Plain = text, shown.Hidden, shown.Plain
	return it, err
}

// shortName returns a type's name without its namespace, as in topology.yaml. A record
// without a value has no type.
func shortName(s *codec.Schema) string {
	if s == nil {
		return "tombstone"
	}
	return s.Name()[strings.LastIndexByte(s.Name(), '.')+1:]
}

type historyAnswer struct {
	made
	ID         string      `json:"id"`
	Items      []eventItem `json:"items" doc:"Latest first."`
	Before     int64       `json:"next_before,omitempty" doc:"Value of before for the next page; omitted on the last page."`
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
	w, end := a.turn(w, r)
	if end == nil {
		return
	}
	defer end()
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

// version returns a parameter that holds a version of an aggregate, or missing if the
// request does not have it. If the value is invalid or below least, it writes the
// problem and returns false.
func (a *api) version(w http.ResponseWriter, r *http.Request, name string, missing, least int64) (int64, bool) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return missing, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least {
		a.problem(w, http.StatusBadRequest, "%s=%s: want a version of %d or more", name, text, least)
		return 0, false
	}
	return n, true
}

type whyAnswer struct {
	made
	Position
	item
	Fields  map[string]eventItem `json:"fields" doc:"Maps the dotted path of a field to the event that last changed it. Fields that never changed are omitted."`
	Unknown []string             `json:"unknown,omitempty" doc:"Fields whose last change is older than version unknown_before: the search of a long history stops there."`
	Before  int64                `json:"unknown_before,omitempty" doc:"First version that was searched; omitted if the search was complete."`
}

func (a *api) why(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	w, end := a.turn(w, r)
	if end == nil {
		return
	}
	defer end()
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
	Fields map[string]changedItem `json:"fields" doc:"Maps the dotted path of each field that differs to its values."`
	Hidden map[string]string      `json:"hidden,omitempty" doc:"Maps the dotted path of an encrypted field that is null to the reason."`
	Plain  []string               `json:"plain,omitempty" doc:"Dotted paths of tagged fields of the newer state whose text was never encrypted."`
}

// side describes one of the two compared states.
type side struct {
	Version   int64          `json:"version" doc:"0 means before the first event."`
	Deleted   bool           `json:"deleted,omitempty"`
	EventID   string         `json:"event_id,omitempty" doc:"Event that produced the version."`
	EventTime *pipeline.Time `json:"event_time,omitempty"`
}

func newSide(g Aggregate) side {
	s := side{Version: g.Version, Deleted: g.Deleted, EventID: g.EventID}
	if g.Version > 0 {
		t := g.EventTime
		s.EventTime = &t
	}
	return s
}

// changedItem is a field in two states.
type changedItem struct {
	From json.RawMessage `json:"from,omitempty" doc:"Omitted if from is before the first event."`
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
	w, end := a.turn(w, r)
	if end == nil {
		return
	}
	defer end()
	before, after, paths, err := p.Diff(r.Context(), r.PathValue("id"), from, to)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	d := p.Describe()
	out := diffAnswer{made: made{d.Name, d.Version}, Position: after.At, ID: r.PathValue("id"), From: newSide(before), To: newSide(after)}
	var shown Decrypted
	if out.Fields, shown, err = changedItems(d, before, after, paths); err != nil {
		a.fail(w, r, err)
		return
	}
	out.Hidden, out.Plain = shown.Hidden, shown.Plain
	a.answer(w, r, out)
}

// changedItems returns the values of the fields at paths in two states. It omits fields
// that differ only in their ciphertext. shown is what tree says of
// after.
func changedItems(d Description, before, after Aggregate, paths []string) (fields map[string]changedItem, shown Decrypted, err error) {
	from, _, err := tree(d, before)
	if err != nil {
		return nil, shown, err
	}
	to, shown, err := tree(d, after)
	if err != nil {
		return nil, shown, err
	}
	fields = map[string]changedItem{}
	for _, path := range paths {
		var c changedItem
		if before.Version > 0 {
			if c.From, err = valueAt(from, path); err != nil {
				return nil, shown, err
			}
		}
		if c.To, err = valueAt(to, path); err != nil {
			return nil, shown, err
		}
		if d.Decrypt != nil && shown.Hidden[path] == "" && bytes.Equal(c.From, c.To) {
			continue // two ciphertexts of the same plaintext
		}
		fields[path] = c
	}
	return fields, shown, nil
}

// tree returns a state as decoded JSON. Numbers are json.Number, so they keep their
// text. Version 0 has no state: v is nil.
func tree(d Description, g Aggregate) (v any, shown Decrypted, err error) {
	if g.Version == 0 {
		return nil, shown, nil
	}
	text, shown, err := d.json(d.State, g.State)
	if err != nil {
		return nil, shown, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	err = dec.Decode(&v)
	return v, shown, err
}

// valueAt returns the value at a dotted path, as JSON.
func valueAt(v any, path string) (json.RawMessage, error) {
	for _, name := range strings.Split(path, ".") {
		o, ok := v.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("the state has no field %s", path)
		}
		v = o[name]
	}
	return json.Marshal(v)
}

type eventAnswer struct {
	Applied []eventItem `json:"applied" doc:"One entry for each projection that applied the event."`
}

// event searches all projections, because several may have applied the event.
func (a *api) event(w http.ResponseWriter, r *http.Request) {
	var out eventAnswer
	var failed error
	for _, p := range a.projections {
		e, err := p.Event(r.Context(), r.PathValue("id"), r.URL.Query().Get("aggregate"))
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
	case errors.Is(failed, ErrEventID):
		a.fail(w, r, failed)
	case errors.Is(failed, ErrNotFound):
		a.writeProblem(w, a.unappliedEvent(r))
	default:
		a.fail(w, r, failed)
	}
}

// unappliedEvent returns the problem for an event that no projection applied, with
// the outcomes that the projections know.
func (a *api) unappliedEvent(r *http.Request) problemAnswer {
	id := r.PathValue("id")
	answer := problemAnswer{Status: http.StatusNotFound, Detail: fmt.Sprintf("event %q was not applied to any aggregate of this worker", id)}
	for _, p := range a.projections {
		o, err := p.Outcome(r.Context(), EventRef{ID: id})
		if err != nil || o.State == Pending {
			continue
		}
		answer.Outcome, answer.Pipeline, answer.Stage, answer.Reason = o.State, o.Pipeline, o.Stage, o.Reason
		detail := o.Detail
		if o.Pipeline == "" {
			detail = fmt.Sprintf("projection %s: %s: %s", p.Describe().Name, o.State, o.Detail)
		}
		// Several projections behind one pipeline report the same outcome.
		if !strings.Contains(answer.Detail, detail) {
			answer.Detail += "; " + detail
		}
	}
	return answer
}

type eventsAnswer struct {
	made
	Items      []eventItem `json:"items" doc:"Latest event time first."`
	Next       string      `json:"next_cursor,omitempty" doc:"Cursor of the next page; omitted on the last page."`
	Partitions []Position  `json:"partitions"`
}

func (a *api) events(w http.ResponseWriter, r *http.Request) {
	limit, ok := a.limit(w, r)
	if !ok {
		return
	}
	before, ok := parseEventCursor(r.URL.Query().Get("cursor"))
	if !ok {
		a.problem(w, http.StatusBadRequest, "cursor: want the next_cursor of an answer, or none")
		return
	}
	// Every projection that folds the type has all of its events, so use the first.
	p, typ := a.folding(r.URL.Query().Get("type"))
	if p == nil {
		hint := expr.Suggest(r.URL.Query().Get("type"), a.typeNames())
		if hint != "" {
			hint = "; " + hint
		}
		a.problem(w, http.StatusBadRequest, "type=%s: want an event type, one of %s%s", r.URL.Query().Get("type"), strings.Join(a.typeNames(), ", "), hint)
		return
	}
	w, end := a.turn(w, r)
	if end == nil {
		return
	}
	defer end()
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

// folding returns the first projection that folds a type, and the type's full name. name
// is the type's name with or without its namespace.
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
