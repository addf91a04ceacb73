package query

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
)

type listAnswer struct {
	made
	Items         []item       `json:"items"`
	Next          string       `json:"next_cursor,omitempty" doc:"Cursor of the next page; omitted on the last page. A page with fewer items than limit, even an empty one, is not necessarily the last."`
	Partitions    []Position   `json:"partitions" doc:"Position of each partition at the time of the read."`
	FilterFailed  int          `json:"filter_failed,omitempty" doc:"Number of aggregates that were read for this page and for which the filter failed for another reason than null or a missing map entry. They do not match."`
	FilterFailure string       `json:"filter_failure,omitempty" doc:"The first of these failures."`
	AfterEvent    OutcomeState `json:"after_event,omitempty" doc:"applied: the states include the requested event."`
}

// listCursor is the position at which a list continues. It also holds the filter and
// sort of the list, so all pages use the same ones.
type listCursor struct {
	Filter string `json:"f,omitempty"`
	Sort   string `json:"s,omitempty"`
	Key    []byte `json:"k,omitempty"` // sort key of the last item, if the list is sorted
	ID     string `json:"i"`           // id of the last item (sorted), or of the last aggregate read
}

func (c listCursor) text() string {
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err) // cannot happen: only strings
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// listPosition returns the position at which the requested page starts, with its filter
// and sort. If the cursor is invalid, it writes the problem and returns false.
func (a *api) listPosition(w http.ResponseWriter, r *http.Request) (at listCursor, ok bool) {
	at = listCursor{Filter: r.URL.Query().Get("filter"), Sort: r.URL.Query().Get("sort")}
	text := r.URL.Query().Get("cursor")
	if text == "" {
		return at, true
	}
	var c listCursor
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	switch {
	case err != nil:
		a.problem(w, http.StatusBadRequest, "cursor: want the next_cursor of an answer, or none")
		return at, false
	case at.Filter != "" && at.Filter != c.Filter, at.Sort != "" && at.Sort != c.Sort:
		a.problem(w, http.StatusBadRequest, "cursor: it belongs to a list with another filter or sort; omit filter and sort to continue that list, or omit cursor to start a new one")
		return at, false
	}
	return c, true
}

func (a *api) list(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	limit, ok := a.limit(w, r)
	if !ok {
		return
	}
	fresh, ok := a.freshness(w, r)
	if !ok {
		return
	}
	at, ok := a.listPosition(w, r)
	if !ok {
		return
	}
	d := p.Describe()
	var by *sorting
	if at.Sort != "" && at.Sort != "id" {
		var err error
		if by, err = newSorting(d.State, at.Sort); err != nil {
			a.problem(w, http.StatusBadRequest, "sort=%s: %v", at.Sort, err)
			return
		}
	}
	var keep *filter
	if at.Filter != "" {
		if keep = a.filter(w, d, at.Filter); keep == nil {
			return
		}
	}
	if fresh.event.ID != "" && !a.arrived(w, r, p, fresh) {
		return
	}

	w, end := a.turn(w, r)
	if end == nil {
		return
	}
	defer end()
	l := lister{made: d, limit: limit, at: at, by: by, keep: keep}
	positions, err := p.Scan(r.Context(), l.after(), l.see)
	switch {
	case errors.Is(l.err, errTooMany):
		a.problem(w, http.StatusUnprocessableEntity, "sorting reads every aggregate, also those that a filter excludes, and there are more than %d, which is the limit; sort by id, which has no limit", maxScanned)
		return
	case err != nil || l.err != nil:
		a.fail(w, r, errors.Join(err, l.err))
		return
	}
	out := listAnswer{made: made{d.Name, d.Version}, Partitions: positions, FilterFailed: l.failed, FilterFailure: l.failure}
	if out.Items, out.Next, err = l.page(); err != nil {
		a.fail(w, r, err)
		return
	}
	if fresh.event.ID != "" {
		out.AfterEvent = Applied
	}
	a.answer(w, r, out)
}

var errTooMany = errors.New("too many aggregates to sort")

// lister collects a page of a list.
type lister struct {
	made  Description
	limit int
	at    listCursor
	by    *sorting
	keep  *filter

	found   []found
	scanned int
	more    bool   // there is another page
	of      string // id of the last aggregate read
	failed  int    // aggregates for which the filter failed, except because of null
	failure string // the first failure
	err     error
}

type found struct {
	Aggregate
	key []byte
}

// after returns the id after which the scan starts. A sorted list scans all
// aggregates.
func (l *lister) after() string {
	if l.by != nil {
		return ""
	}
	return l.at.ID
}

// see adds an aggregate to the page if it matches, and reports whether the scan
// continues. It is the callback of [Projection.Scan].
func (l *lister) see(g Aggregate) bool {
	if l.scanned == maxScanned {
		l.more = true
		if l.by != nil {
			l.err = errTooMany
		}
		return false
	}
	l.scanned++
	before := l.of
	l.of = g.ID
	if l.keep != nil {
		var ok bool
		switch ok, l.err = l.keep.match(&g); {
		case l.err != nil && pipeline.ClassOf(l.err) == pipeline.ClassReject:
			l.unmatched(g.ID)
			return true
		case l.err != nil || !ok:
			return l.err == nil
		}
	}
	if l.by == nil && len(l.found) == l.limit {
		l.more, l.of = true, before // the page is full: the next one starts with this aggregate
		return false
	}
	f := found{Aggregate: g}
	if l.by != nil {
		if f.key, l.err = l.by.key(&g); l.err != nil {
			return false
		}
		if l.at.ID != "" && l.by.compare(f.key, g.ID, l.at.Key, l.at.ID) <= 0 {
			return true // on an earlier page
		}
	}
	f.State = bytes.Clone(g.State)
	l.found = append(l.found, f)
	if l.by != nil && len(l.found) >= 2*l.limit+64 {
		l.cut()
	}
	return true
}

// unmatched handles an aggregate for which the filter failed: it does not match. Null and
// missing map entries are not counted, because a filter usually does not expect them.
func (l *lister) unmatched(id string) {
	err := l.err
	if l.err = nil; expr.IsNull(err) {
		return
	}
	if l.failed++; l.failed == 1 {
		l.failure = fmt.Sprintf("aggregate %q: %v", id, err)
	}
}

// cut sorts the found aggregates and keeps the first limit of them, to bound memory.
func (l *lister) cut() {
	slices.SortFunc(l.found, func(a, b found) int { return l.by.compare(a.key, a.ID, b.key, b.ID) })
	if len(l.found) > l.limit {
		l.more = true
		clear(l.found[l.limit:])
		l.found = l.found[:l.limit]
	}
}

func (l *lister) page() (items []item, next string, err error) {
	if l.by != nil {
		l.cut()
	}
	items = make([]item, len(l.found))
	for i, f := range l.found {
		if items[i], err = newItem(l.made, f.Aggregate); err != nil {
			return nil, "", err
		}
	}
	if !l.more {
		return items, "", nil
	}
	c := l.at
	c.ID = l.of
	if l.by != nil {
		last := l.found[len(l.found)-1]
		c.ID, c.Key = last.ID, last.key
	}
	return items, c.text(), nil
}

// A sorting orders aggregates by a field, then by id. Exactly one of "of" and layout is
// set; field goes with layout. It belongs to one request, since key reuses the view.
type sorting struct {
	down   bool
	of     func(*Aggregate) []byte // sort key from a field of the aggregate itself
	layout *codec.Layout           // layout with the leaf that holds a field of the state
	field  within.Field
	view   pipeline.View
}

func newSorting(state *codec.Schema, text string) (*sorting, error) {
	s := &sorting{}
	name, down := strings.CutPrefix(text, "-")
	s.down = down
	switch name {
	case "id":
		s.of = func(g *Aggregate) []byte { return []byte(g.ID) }
	case "version":
		s.of = func(g *Aggregate) []byte { return orderedLong(nil, g.Version) }
	case "event_time":
		s.of = func(g *Aggregate) []byte { return orderedLong(nil, g.EventTime.UnixMicro()) }
	default:
		path, ok := strings.CutPrefix(name, "state.")
		if !ok {
			return nil, errors.New("want id, version, event_time or state.FIELD, with a leading - for descending order")
		}
		field, fault := within.FieldAt(state, strings.Split(path, "."))
		if fault != nil {
			var names []string
			for _, f := range state.Root().Fields {
				names = append(names, "state."+f.Name)
			}
			hint := fault.Hint
			if !strings.Contains(path, ".") {
				hint = expr.Suggest(name, names)
			}
			if hint != "" {
				return nil, fmt.Errorf("%w; %s", fault, hint)
			}
			return nil, fault
		}
		switch {
		case field.Node.Kind == codec.Record:
			return nil, fmt.Errorf("%s of %s is a record: name one of its fields", path, state.Name())
		case field.Node.Tag != "":
			return nil, errors.New("the field is encrypted, and ciphertexts have no useful order")
		case !sortable(field.Node):
			return nil, fmt.Errorf("the field is %s, which has no order", field.Node)
		}
		var err error
		if s.layout, err = codec.NewLayout(state, [][]string{field.Leaf}); err != nil {
			return nil, err
		}
		s.field = field
	}
	return s, nil
}

func sortable(n *codec.Node) bool {
	n = n.NotNull()
	switch n.Kind {
	case codec.Boolean, codec.Int, codec.Long, codec.Float, codec.Double, codec.String, codec.Enum:
		return true
	case codec.Bytes, codec.Fixed:
		return n.Logical == "decimal"
	}
	return false
}

// compare orders by key, then by id. s.down reverses only the order of the keys.
func (s *sorting) compare(a []byte, aID string, b []byte, bID string) int {
	c := bytes.Compare(a, b)
	if s.down {
		c = -c
	}
	return cmp.Or(c, cmp.Compare(aID, bID))
}

// key returns the field's value as bytes in an order-preserving encoding. Null sorts
// before all other values, also the null of a record around the field.
func (s *sorting) key(g *Aggregate) ([]byte, error) {
	if s.of != nil {
		return s.of(g), nil
	}
	if err := s.layout.Walk(g.State, &s.view); err != nil {
		return nil, fmt.Errorf("the state of %q: %w", g.ID, err)
	}
	n := s.field.Node
	enc, ok, err := s.field.Get(s.view.Get(0))
	if !ok || err != nil {
		return []byte{0}, err
	}
	if other, null, _, ok := n.Nullable(); ok {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil || branch == int64(null) {
			return []byte{0}, err
		}
		n, enc = other, rest
	}
	key := []byte{1}
	switch n.Kind {
	case codec.Boolean:
		return append(key, enc...), nil
	case codec.Int, codec.Long:
		v, _, err := codec.ReadLong(enc)
		return orderedLong(key, v), err
	case codec.Enum: // by symbol, not by its index
		v, _, err := codec.ReadLong(enc)
		if err == nil && v >= 0 && v < int64(len(n.Symbols)) {
			key = append(key, n.Symbols[v]...)
		}
		return key, err
	case codec.Float:
		v, _, err := codec.ReadFloat(enc)
		return orderedDouble(key, float64(v)), err
	case codec.Double:
		v, _, err := codec.ReadDouble(enc)
		return orderedDouble(key, v), err
	case codec.Fixed: // a decimal
		return orderedDecimal(key, enc[:n.Size]), nil
	case codec.Bytes:
		v, _, err := codec.ReadText(enc)
		return orderedDecimal(key, v), err
	}
	text, _, err := codec.ReadText(enc)
	return append(key, text...), err
}

func orderedLong(dst []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(v)^1<<63)
}

func orderedDouble(dst []byte, v float64) []byte {
	bits := math.Float64bits(v)
	if bits>>63 == 1 {
		bits = ^bits
	} else {
		bits |= 1 << 63
	}
	return binary.BigEndian.AppendUint64(dst, bits)
}

// orderedDecimal appends the unscaled integer of a decimal. All values of a field have
// the same scale, so the order is that of the integers: by sign and length, then by the
// bytes of the shortest form.
func orderedDecimal(dst, unscaled []byte) []byte {
	d := decimal.FromBytes(unscaled, 0)
	length := d.Size() // at most 1,024: codec.Layout accepts no longer decimal
	if d.Sign() < 0 {
		length = -length
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(1<<15+length))
	dst, _ = d.AppendBytes(dst, 0)
	return dst
}

// aggregateSchema has the fields of an aggregate that a filter can read in addition
// to the state. They are named as in the answers.
const aggregateSchema = `{"type":"record","name":"Aggregate","fields":[
	{"name":"id","type":"string"},
	{"name":"version","type":"long"},
	{"name":"deleted","type":"boolean"},
	{"name":"event_id","type":"string"},
	{"name":"event_time","type":{"type":"long","logicalType":"timestamp-micros"}},
	{"name":"event_offset","type":"long"}]}`

// A filter is a compiled condition. It is safe for concurrent use.
type filter struct {
	program *expr.Program
	own     *codec.Layout // of aggregateSchema; nil if the condition reads none of its fields
	state   *codec.Layout // nil if the condition reads no field of the state
	views   sync.Pool     // of *[2]pipeline.View
}

func newFilter(state *codec.Schema, text string) (*filter, error) {
	own, err := codec.ParseSchema(aggregateSchema)
	if err != nil {
		return nil, err
	}
	env, err := expr.NewEnv(expr.Root{Schema: own, NoEvent: true}, expr.Root{Name: "state", Schema: state, View: 1})
	if err != nil {
		return nil, err
	}
	f := &filter{views: sync.Pool{New: func() any { return new([2]pipeline.View) }}}
	if f.program, err = env.Compile(text, expr.Condition("a filter")); err != nil {
		return nil, err
	}
	if f.own, err = layoutOf(own, f.program.Paths(0)); err != nil {
		return nil, err
	}
	if f.state, err = layoutOf(state, f.program.Paths(1)); err != nil {
		return nil, err
	}
	return f, f.program.Bind(f.own, f.state)
}

func layoutOf(s *codec.Schema, paths [][]string) (*codec.Layout, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	return codec.NewLayout(s, paths)
}

// match evaluates the condition. An error of [pipeline.ClassReject] means that it failed
// for this aggregate, which then does not match.
func (f *filter) match(g *Aggregate) (bool, error) {
	v := f.views.Get().(*[2]pipeline.View)
	defer f.views.Put(v)
	if f.own != nil {
		enc := codec.AppendString(make([]byte, 0, 128), g.ID)
		enc = codec.AppendLong(enc, g.Version)
		enc = codec.AppendBool(enc, g.Deleted)
		enc = codec.AppendString(enc, g.EventID)
		enc = codec.AppendLong(enc, g.EventTime.UnixMicro())
		enc = codec.AppendLong(enc, g.Offset)
		if err := f.own.Walk(enc, &v[0]); err != nil {
			return false, err
		}
	}
	if f.state != nil {
		if err := f.state.Walk(g.State, &v[1]); err != nil {
			return false, fmt.Errorf("the state of %q: %w", g.ID, err)
		}
	}
	return f.program.Bool(&v[0], &v[1])
}

// filters caches compiled filters, because compiling costs more than evaluating.
type filters struct {
	mu    sync.Mutex
	known map[[2]string]*filter // by projection and text; guarded by mu
}

// maxFilters is the maximum size of the cache. A full cache is emptied.
const maxFilters = 256

// filter returns a compiled filter. If it does not compile, filter writes a problem
// with the faults and their places, and returns nil.
func (a *api) filter(w http.ResponseWriter, d Description, text string) *filter {
	key := [2]string{d.Name, text}
	a.filters.mu.Lock()
	f := a.filters.known[key]
	a.filters.mu.Unlock()
	if f != nil {
		return f
	}
	f, err := newFilter(d.State, text)
	if err == nil {
		a.filters.mu.Lock()
		defer a.filters.mu.Unlock()
		if a.filters.known == nil || len(a.filters.known) >= maxFilters {
			a.filters.known = map[[2]string]*filter{}
		}
		a.filters.known[key] = f
		return f
	}
	p := problemAnswer{Status: http.StatusBadRequest, Detail: "filter: " + err.Error()}
	var faults expr.Errors
	if errors.As(err, &faults) {
		var lines []string
		for _, e := range faults {
			p.Faults = append(p.Faults, fault{"filter", e.Offset, e.Msg, e.Hint})
			lines = append(lines, fmt.Sprintf("at character %d: %s", e.Offset+1, e.Error()))
		}
		p.Detail = "filter, " + strings.Join(lines, "\n")
	}
	a.writeProblem(w, p)
	return nil
}
