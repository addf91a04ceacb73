package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/topology"
)

// tapPath is where a worker that runs with --tap shows events.
const tapPath = "/v1/tap"

// Bounds of what is shown.
const (
	maxTaps     = 8    // who watch at a time
	maxTapRate  = 1000 // events a second for each
	tapBuffer   = 1024 // lines that wait to be sent
	tapRate     = 10.0 // if nothing is said
	tapPing     = 15 * time.Second
	maskedValue = "***"
)

// taps are those who watch events of this process. A session asks once for each
// event whether there is anybody. What they do not take in time is dropped and
// counted: they never hold up a pipeline.
type taps struct {
	pipelines []*topology.Pipeline
	mask      []string
	now       func() time.Time
	dropped   prometheus.Counter

	mu       sync.Mutex // is held while watching is changed
	watching atomic.Pointer[[]*tapClient]
}

func newTaps(reg prometheus.Registerer, pipelines []*topology.Pipeline, mask []string, now func() time.Time) *taps {
	t := &taps{pipelines: pipelines, mask: mask, now: now, dropped: prometheus.NewCounter(prometheus.CounterOpts{
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

func (c *tapClient) send(l traceLine, dropped prometheus.Counter) {
	behind := c.dropped.Load()
	l.Dropped = behind
	maskLine(&l, c.mask)
	select {
	case c.lines <- []byte(compact(l)):
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
	taps  *taps
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
func (t *taps) tap(pl *topology.Pipeline, chain *pipeline.Chain) *sessionTap {
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
func (s *sessionTap) show(stage, typ string, line func() traceLine) {
	var made *traceLine
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
		s.show(s.pl.Stages[stage].Name, s.pl.Output[e.Type].ShortName(), func() traceLine { return newTraceLine(s.pl, m, stage, e, err) })
	}
}

// end is called after each event. What failed outside of the stages is shown
// here.
func (s *sessionTap) end(in *pipeline.Record, stage string, err error) {
	if s == nil || !s.on {
		return
	}
	if err != nil && (stage == stageDecode || stage == stageEncode) {
		s.show(stage, "", func() traceLine {
			l := traceLine{Pipeline: s.pl.Name, Stage: stage, At: momentNames[pipeline.Failed],
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
func maskLine(l *traceLine, mask []string) {
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
	v, err := readJSON(l.Event)
	if err != nil {
		l.Event = json.RawMessage(`"` + maskedValue + `"`)
		return
	}
	l.Event = json.RawMessage(compact(maskValue("", "", v, mask, all)))
}

func maskValue(path, name string, v any, mask []string, all bool) any {
	if path != "" && (slices.Contains(mask, path) || slices.Contains(mask, name)) {
		return maskedValue
	}
	switch v := v.(type) {
	case orderedJSON:
		out := make(orderedJSON, len(v))
		for i, f := range v {
			at := f.name
			if path != "" {
				at = path + "." + f.name
			}
			out[i] = jsonField{f.name, maskValue(at, f.name, f.value, mask, all)}
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
func (t *taps) client(q url.Values) (*tapClient, error) {
	c := &tapClient{mask: t.mask, rate: tapRate, filled: t.now(), lines: make(chan []byte, tapBuffer), ended: make(chan struct{})}
	var pipelines, types []string
	stages := []string{stageDecode, stageEncode}
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
				faults = append(faults, errors.New(unknownName(what, name, names)))
			}
		}
		return asked
	}
	for _, name := range sortedKeys(q) {
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
			faults = append(faults, errors.New(unknownName("parameter", name, []string{"pipeline", "stage", "type", "key", "rate", "limit", "mask"})))
		}
	}
	c.tokens = max(1, c.rate)
	return c, errors.Join(faults...)
}

// join lets a client watch until leave is called.
func (t *taps) join(c *tapClient) (leave func(), ok bool) {
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
func (t *taps) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := t.client(r.URL.Query())
	if err != nil {
		writeText(w, http.StatusBadRequest, err.Error())
		return
	}
	leave, ok := t.join(c)
	if !ok {
		writeText(w, http.StatusServiceUnavailable, fmt.Sprintf("%d watch already", maxTaps))
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

func tapCommand(e *Env) *cobra.Command {
	t := &tapper{env: e, server: &ServerFlags{env: e}}
	cmd := &cobra.Command{
		Use:   "tap",
		Short: "Watch events before and after each stage of a running worker",
		Long: `Connects to a worker that runs with --tap, and shows events as they are handled:
how they come, what each stage does to them, and what becomes of them. It is a
sample: at most --rate events a second, each with all that happens to it. What a
slow terminal does not take is dropped, and counted.

A worker shows the events of the partitions that it has. Of a batch that is rolled
back they are shown again.`,
		Example: `  processor tap
  processor tap --stage stamp --key user-1 --limit 5
  curl -N '127.0.0.1:9101/v1/tap?type=OrderCreated&rate=1'`,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&t.server.listen, "listen", processorListen, "the worker's `host:port`")
	flags.StringVar(&t.server.listenFile, "listen-file", "", "`file` in which the worker wrote its address")
	flags.StringSliceVar(&t.pipelines, "pipeline", nil, "only these `pipelines`")
	flags.StringSliceVar(&t.stages, "stage", nil, "only at these `stages`; decode and encode are what comes before and after them")
	flags.StringSliceVar(&t.types, "type", nil, "only events of these `types`")
	flags.StringVar(&t.key, "key", "", "only events of this `key`")
	flags.StringSliceVar(&t.mask, "mask", nil, "do not show these fields, by `path` or name; key is the key, and * all values")
	flags.Float64Var(&t.rate, "rate", tapRate, "`events` a second, at most")
	flags.IntVarP(&t.limit, "limit", "n", 0, "end after so many `events`")
	flags.BoolVar(&t.json, "json", false, "print the lines as they come, JSON")
	e.BindEnv(flags, "listen", "listen-file")
	t.keyed = func() bool { return flags.Changed("key") }
	return cmd
}

type tapper struct {
	env                            *Env
	server                         *ServerFlags
	pipelines, stages, types, mask []string
	key                            string
	keyed                          func() bool
	rate                           float64
	limit                          int
	json                           bool
}

func (t *tapper) run(ctx context.Context) error {
	addr, err := t.server.dialAddress()
	if err != nil {
		return err
	}
	q := url.Values{"rate": {strconv.FormatFloat(t.rate, 'g', -1, 64)}, "limit": {strconv.Itoa(t.limit)}}
	for name, values := range map[string][]string{"pipeline": t.pipelines, "stage": t.stages, "type": t.types, "mask": t.mask} {
		if len(values) > 0 {
			q[name] = values
		}
	}
	if t.keyed() {
		q.Set("key", t.key)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+tapPath+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w; is a worker running there?", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fmt.Errorf("the worker at %s shows no events: run it with --tap", addr)
	default:
		text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return errors.Join(fmt.Errorf("the worker at %s: %s", addr, bytes.TrimSpace(text)), err)
	}
	view := tapView{printer: printer{w: t.env.Stdout}, colour: t.env.colours()}
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return view.err // whoever watches has seen enough, or the worker has
		case err != nil:
			return fmt.Errorf("the worker at %s: %w", addr, err)
		case len(bytes.TrimSpace(line)) == 0:
			continue
		case t.json:
			view.line("%s", bytes.TrimSpace(line))
		default:
			var l traceLine
			if err := json.Unmarshal(line, &l); err != nil {
				return fmt.Errorf("the worker at %s says what this program does not understand: %w", addr, err)
			}
			view.show(l)
		}
		if view.err != nil {
			return view.err
		}
	}
}

// colours reports whether what is printed may be coloured: a person reads it,
// and has not asked for none (no-color.org).
func (e *Env) colours() bool {
	f, ok := e.Stdout.(*os.File)
	return ok && isTerminal(f) && e.getenv("NO_COLOR") == "" && e.getenv("TERM") != "dumb"
}

// tapView prints lines for people: what changes, below the event that it happens
// to.
type tapView struct {
	printer
	colour bool

	last    place
	entered map[place]json.RawMessage // the newest events, as they came to the stage they are at
}

// maxEntered bounds the events that are under way at a time.
const maxEntered = 1000

func (v *tapView) paint(code, text string) string {
	if !v.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// harmless returns text that does nothing to a terminal.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}

func (v *tapView) show(l traceLine) {
	if l.Dropped > 0 {
		v.line("%s", v.paint("33", fmt.Sprintf("(%s not shown: this end was too slow)", plural(int(l.Dropped), "line"))))
	}
	if l.Stage == "" {
		return
	}
	at := place{l.Topic, l.Partition, l.Offset}
	if v.entered == nil || len(v.entered) > maxEntered {
		v.entered = map[place]json.RawMessage{}
	}
	_, known := v.entered[at]
	if at != v.last {
		v.line("%s %s key %s %s %s", l.Time.Format("2006-01-02T15:04:05.000Z"), v.paint("1", at.String()), harmless(quoted(l.Key)), l.Type, v.paint("2", l.Pipeline))
		v.last = at
	}
	before := v.entered[at]
	if l.At == momentNames[pipeline.Entering] {
		v.entered[at] = l.Event
		if !known {
			v.line("  %s", harmless(string(l.Event)))
		}
		return
	}
	colour := map[string]string{"passed": "32", "filtered": "33", "skipped": "33", "failed": "31"}[l.At]
	v.line("  %-20s %s%s", l.Stage, v.paint(colour, l.At), harmless(tapDetail(before, l)))
}

// tapDetail says what a stage did.
func tapDetail(before json.RawMessage, l traceLine) string {
	var parts []string
	if l.Error != "" {
		parts = append(parts, clip(l.Error, 300))
	}
	if before != nil && l.Event != nil {
		parts = append(parts, changes(before, l.Event)...)
	}
	if l.NewKey != nil {
		parts = append(parts, "new key "+quoted(*l.NewKey))
	}
	if len(l.To) > 0 {
		parts = append(parts, "to "+strings.Join(l.To, ", "))
	}
	if len(parts) == 0 {
		return ""
	}
	return "  " + strings.Join(parts, ", ")
}
