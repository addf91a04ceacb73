package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// TapPath is where a worker that runs with --tap shows events.
const TapPath = "/v1/tap"

// Bounds of what is shown.
const (
	maxTaps     = 8    // who watch at a time
	maxTapRate  = 1000 // events a second for each
	tapBuffer   = 1024 // lines that wait to be sent
	TapRate     = 10.0 // if nothing is said
	tapPing     = 15 * time.Second
	maskedValue = "***"
)

// Taps are those who watch events of this process. A session asks once for each
// event whether there is anybody. What they do not take in time is dropped and
// counted: they never hold up a pipeline.
type Taps struct {
	pipelines []*topology.Pipeline
	mask      []string
	now       func() time.Time
	dropped   prometheus.Counter

	mu       sync.Mutex // is held while watching is changed
	watching atomic.Pointer[[]*tapClient]
}

func NewTaps(reg prometheus.Registerer, pipelines []*topology.Pipeline, mask []string, now func() time.Time) *Taps {
	t := &Taps{pipelines: pipelines, mask: mask, now: now, dropped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_tap_dropped_total", Help: "Lines for those who watch events that were not sent, because they were too slow.",
	})}
	reg.MustRegister(t.dropped)
	return t
}

// tapClient is one who watches.
type tapClient struct {
	pipelines, stages, types []string // nil: all
	key                      *string
	mask                     []string
	rate                     float64 // events a second
	limit                    int     // events; 0: no end

	lines   chan []byte
	ended   chan struct{} // closed when the limit is reached
	dropped atomic.Int64  // lines since the last that was sent

	mu     sync.Mutex // guards what follows
	tokens float64
	filled time.Time
	taken  int // events
	open   int // of them, still under way
}

// take decides whether an event is shown.
func (c *tapClient) take(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit > 0 && c.taken >= c.limit {
		return false
	}
	c.tokens = min(max(1, c.rate), c.tokens+now.Sub(c.filled).Seconds()*c.rate)
	c.filled = now
	if c.tokens < 1 {
		return false
	}
	c.tokens--
	c.taken++
	c.open++
	return true
}

// done says that no more lines of an event come.
func (c *tapClient) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open--; c.open == 0 && c.limit > 0 && c.taken == c.limit {
		close(c.ended)
	}
}

func (c *tapClient) send(l TraceLine, dropped prometheus.Counter) {
	behind := c.dropped.Load()
	l.Dropped = behind
	maskLine(&l, c.mask)
	select {
	case c.lines <- []byte(cli.CompactJSON(l)):
		c.dropped.Add(-behind)
	default:
		c.dropped.Add(1)
		dropped.Inc()
	}
}

// matches reports whether a name is among those asked for.
func matches(asked []string, name string) bool { return asked == nil || slices.Contains(asked, name) }

// sessionTap shows the events of one session.
type sessionTap struct {
	taps  *Taps
	pl    *topology.Pipeline
	chain *pipeline.Chain

	on    bool // the chain is being watched
	asked []tapChoice
}

// tapChoice is what one who watches has to do with the event at hand.
type tapChoice struct {
	*tapClient
	decided, shown bool
}

// tap returns what shows the events of a session; nil if nobody can watch.
func (t *Taps) tap(pl *topology.Pipeline, chain *pipeline.Chain) *sessionTap {
	if t == nil {
		return nil
	}
	return &sessionTap{taps: t, pl: pl, chain: chain}
}

// begin is called before each event.
func (s *sessionTap) begin(in *pipeline.Record) {
	if s == nil {
		return
	}
	watching := s.taps.watching.Load()
	if watching == nil {
		if s.on {
			s.on = false
			s.chain.Watch(nil)
		}
		return
	}
	if !s.on {
		s.on = true
		s.chain.Watch(s.watch)
	}
	s.asked = s.asked[:0]
	for _, c := range *watching {
		if matches(c.pipelines, s.pl.Name) && (c.key == nil || *c.key == string(in.Key)) {
			s.asked = append(s.asked, tapChoice{tapClient: c})
		}
	}
}

// show sends a line to those who want it. It is made when the first does.
func (s *sessionTap) show(stage, typ string, line func() TraceLine) {
	var made *TraceLine
	for i := range s.asked {
		c := &s.asked[i]
		if !matches(c.stages, stage) || !matches(c.types, typ) {
			continue
		}
		if !c.decided {
			c.decided, c.shown = true, c.take(s.taps.now())
		}
		if !c.shown {
			continue
		}
		if made == nil {
			l := line()
			made = &l
		}
		c.send(*made, s.taps.dropped)
	}
}

// watch is the session's [pipeline.Watch].
func (s *sessionTap) watch(m pipeline.Moment, stage int, e *pipeline.Event, err error) {
	if len(s.asked) > 0 {
		s.show(s.pl.Stages[stage].Name, s.pl.Output[e.Type].ShortName(), func() TraceLine { return newTraceLine(s.pl, m, stage, e, err) })
	}
}

// end is called after each event. What failed outside of the stages is shown
// here.
func (s *sessionTap) end(in *pipeline.Record, stage string, err error) {
	if s == nil || !s.on {
		return
	}
	if err != nil && (stage == deadletter.StageDecode || stage == deadletter.StageEncode) {
		s.show(stage, "", func() TraceLine {
			l := TraceLine{Pipeline: s.pl.Name, Stage: stage, At: MomentNames[pipeline.Failed],
				Topic: in.Topic, Partition: in.Partition, Offset: in.Offset, Time: in.Time.UTC(), Key: string(in.Key)}
			l.fail(err)
			return l
		})
	}
	for _, c := range s.asked {
		if c.shown {
			c.done()
		}
	}
	s.asked = s.asked[:0]
}

// maskLine takes out of a line what is not to be seen: fields, by path or by name,
// "key", or with "*" all values. The text of an error may hold values, and goes
// with any of them.
func maskLine(l *TraceLine, mask []string) {
	if len(mask) == 0 {
		return
	}
	all := slices.Contains(mask, "*")
	if all || slices.Contains(mask, "key") {
		l.Key = maskedValue
		if l.NewKey != nil {
			masked := maskedValue
			l.NewKey = &masked
		}
	}
	if l.Error != "" {
		l.Error = maskedValue
	}
	if l.Event == nil {
		return
	}
	v, err := cli.ParseJSON(l.Event)
	if err != nil {
		l.Event = json.RawMessage(`"` + maskedValue + `"`)
		return
	}
	l.Event = json.RawMessage(cli.CompactJSON(maskValue("", "", v, mask, all)))
}

func maskValue(path, name string, v any, mask []string, all bool) any {
	if path != "" && (slices.Contains(mask, path) || slices.Contains(mask, name)) {
		return maskedValue
	}
	switch v := v.(type) {
	case cli.OrderedJSON:
		out := make(cli.OrderedJSON, len(v))
		for i, f := range v {
			at := f.Name
			if path != "" {
				at = path + "." + f.Name
			}
			out[i] = cli.JSONField{Name: f.Name, Value: maskValue(at, f.Name, f.Value, mask, all)}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = maskValue(path, name, item, mask, all)
		}
		return out
	}
	if all {
		return maskedValue
	}
	return v
}

// client returns who asks, by the query.
func (t *Taps) client(q url.Values) (*tapClient, error) {
	c := &tapClient{mask: t.mask, rate: TapRate, filled: t.now(), lines: make(chan []byte, tapBuffer), ended: make(chan struct{})}
	var pipelines, types []string
	stages := []string{deadletter.StageDecode, deadletter.StageEncode}
	for _, pl := range t.pipelines {
		pipelines = append(pipelines, pl.Name)
		for _, s := range pl.Stages {
			stages = append(stages, s.Name)
		}
		for _, s := range pl.Output {
			types = append(types, s.ShortName())
		}
	}
	var faults []error
	known := func(what string, asked, names []string) []string {
		for _, name := range asked {
			if !slices.Contains(names, name) {
				faults = append(faults, errors.New(cli.UnknownName(what, name, names)))
			}
		}
		return asked
	}
	for _, name := range slices.Sorted(maps.Keys(q)) {
		values := q[name]
		var err error
		switch name {
		case "pipeline":
			c.pipelines = known(name, values, pipelines)
		case "stage":
			c.stages = known(name, values, stages)
		case "type":
			c.types = known(name, values, types)
		case "key":
			c.key = &values[0]
		case "mask":
			c.mask = append(slices.Clone(c.mask), values...)
		case "rate":
			if c.rate, err = strconv.ParseFloat(values[0], 64); err != nil || !(c.rate > 0 && c.rate <= maxTapRate) {
				faults = append(faults, fmt.Errorf("rate=%s is no number of events a second, above 0 and at most %d", values[0], maxTapRate))
			}
		case "limit":
			if c.limit, err = strconv.Atoi(values[0]); err != nil || c.limit < 0 {
				faults = append(faults, fmt.Errorf("limit=%s is no number of events", values[0]))
			}
		default:
			faults = append(faults, errors.New(cli.UnknownName("parameter", name, []string{"pipeline", "stage", "type", "key", "rate", "limit", "mask"})))
		}
	}
	c.tokens = max(1, c.rate)
	return c, errors.Join(faults...)
}

// join lets a client watch until leave is called.
func (t *Taps) join(c *tapClient) (leave func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*tapClient
	if have := t.watching.Load(); have != nil {
		all = slices.Clone(*have)
	}
	if len(all) >= maxTaps {
		return nil, false
	}
	all = append(all, c)
	t.watching.Store(&all)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		rest := slices.DeleteFunc(slices.Clone(*t.watching.Load()), func(other *tapClient) bool { return other == c })
		if len(rest) == 0 {
			t.watching.Store(nil)
			return
		}
		t.watching.Store(&rest)
	}, true
}

// ServeHTTP implements [http.Handler]: GET /v1/tap shows events before and after
// each stage, as JSON lines or, if that is accepted, as server-sent events. They
// are shown when they are handled: after a batch that is rolled back, again.
func (t *Taps) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := t.client(r.URL.Query())
	if err != nil {
		worker.WriteText(w, http.StatusBadRequest, err.Error())
		return
	}
	leave, ok := t.join(c)
	if !ok {
		worker.WriteText(w, http.StatusServiceUnavailable, fmt.Sprintf("%d watch already", maxTaps))
		return
	}
	defer leave()
	before, after, kind, ping := "", "\n", "application/x-ndjson", "\n"
	if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		before, after, kind, ping = "data: ", "\n\n", "text/event-stream", ": nothing\n\n"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	write := func(parts ...string) bool {
		for _, p := range parts {
			if _, err := io.WriteString(w, p); err != nil {
				return false // whoever asked has gone
			}
		}
		return true
	}
	pings := time.NewTicker(tapPing)
	defer pings.Stop()
	for ok := true; ok; {
		if len(c.lines) == 0 && out.Flush() != nil {
			return
		}
		select {
		case line := <-c.lines:
			ok = write(before, string(line), after)
		case <-pings.C:
			ok = write(ping)
		case <-r.Context().Done():
			return
		case <-c.ended:
			for len(c.lines) > 0 && ok {
				ok = write(before, string(<-c.lines), after)
			}
			if n := c.dropped.Load(); n > 0 {
				write(before, fmt.Sprintf(`{"dropped":%d}`, n), after)
			}
			return
		}
	}
}
