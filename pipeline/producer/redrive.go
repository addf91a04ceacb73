package producer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// redriver sends dead letters back to the topics that they come from.
//
// It reads the dead letters as a consumer group and writes in the transactions
// that move the group on, so each letter goes back once, whatever happens. What
// the group has not passed yet is pending. A letter that is to stay is written
// to the end of its topic in the same transaction, and is pending again: a run
// with a filter hides nothing from the next run.
type redriver struct {
	env      *cli.Env
	kafka    *cli.KafkaFlags
	topology *cli.TopologyFlags
	log      *cli.LogFlags

	group    string
	instance string
	filter   letterFilter
	since    string
	limit    int
	rate     float64
	dryRun   bool
	asJSON   bool
}

func redriveCommand(e *cli.Env) *cobra.Command {
	r := &redriver{env: e}
	cmd := &cobra.Command{
		Use:   "redrive",
		Short: "Send dead letters back to where they came from",
		Long: `Sends the dead letters of the topology's pipelines back to the topics that they
come from, each exactly once, with the key, value and headers that they had. Of
the dlq. headers only dlq.attempt stays, by which a letter that dies again is
known.

Letters that a filter leaves out, that were cut off, that have died too often,
that are too large for where they come from or do not say where that is stay: they are written to the end of the
dead letters' topic, in the same transaction, and the next run finds them.
Letters that arrive during a run wait for the next.

Exit code 0 if it got to the end; 1 if Kafka failed or it was interrupted: what
is told as sent back is, and the next run goes on from there.`,
		Example: `  producer redrive --dry-run
  producer redrive --reason expression --since 24h
  producer redrive --max 100 --rate 10`,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	r.kafka = e.KafkaFlags(flags, "producer")
	r.topology = e.TopologyFlags(flags)
	r.log = e.LogFlags(flags)
	flags.StringVarP(&r.group, "group", "g", "", "consumer `group` that remembers which letters were dealt with (default: the topology's name and -redrive)")
	flags.StringVar(&r.instance, "instance", "0", "`name` of this run among those of the group at the same time")
	flags.StringSliceVar(&r.filter.reasons, "reason", nil, "only letters with one of these `reasons`")
	flags.StringSliceVar(&r.filter.stages, "stage", nil, "only letters of these `stages`")
	flags.StringSliceVar(&r.filter.pipelines, "pipeline", nil, "only letters of these `pipelines`")
	flags.StringVar(&r.since, "since", "", "only letters that died since a `time` (RFC 3339), or within a duration such as 24h")
	flags.IntVar(&r.filter.attempts, "max-attempts", 5, "letters that have died so often stay; 0 means that none do")
	flags.IntVar(&r.limit, "max", 0, "send back so many at most; 0 means all")
	flags.Float64Var(&r.rate, "rate", 0, "letters per second; 0 means as fast as can be")
	flags.BoolVar(&r.dryRun, "dry-run", false, "list the letters that are pending and what would become of them, and change nothing")
	flags.BoolVar(&r.asJSON, "json", false, "print the list or the summary as JSON on stdout")
	e.BindEnv(flags, "group")
	return cmd
}

func (r *redriver) run(ctx context.Context) error {
	switch {
	case r.filter.attempts < 0:
		return cli.Usagef("--max-attempts: %d is less than nothing; 0 means no bound", r.filter.attempts)
	case r.limit < 0:
		return cli.Usagef("--max: %d is less than nothing; 0 means all", r.limit)
	case r.rate < 0 || r.rate > 1e9:
		return cli.Usagef("--rate: %v is not a number of letters per second; 0 means as fast as can be", r.rate)
	}
	var err error
	if r.filter.since, err = sinceTime(r.since, r.env.Now()); err != nil {
		return err
	}
	log, err := r.log.Logger()
	if err != nil {
		return err
	}
	t, err := r.topology.Load(r.env)
	if err != nil {
		return err
	}
	if r.group == "" {
		r.group = t.Name + "-redrive"
	}
	topics := r.filter.topics(t)
	if len(topics) == 0 {
		return &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s has no pipeline with dead letters", r.topology.File)}
	}
	cfg, err := r.kafka.Config(log, nil)
	if err != nil {
		return err
	}
	pending, err := findPending(ctx, cfg, r.group, topics)
	if err != nil {
		return err
	}
	if r.dryRun {
		return r.list(ctx, cfg, pending)
	}
	handler := &redriveHandler{filter: &r.filter, limit: r.limit, pace: newPace(r.rate), pending: pending}
	err = r.drive(ctx, cfg, log, topics, handler)
	if told := r.report(handler); told != nil {
		return told
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil && !handler.finished():
		return context.Cause(ctx)
	}
	return nil
}

// sinceTime reads --since: a time, or how long ago.
func sinceTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, cli.Usagef("--since: %q is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 24h", text)
}

// letterFilter decides what becomes of a letter.
type letterFilter struct {
	reasons, stages, pipelines []string
	since                      time.Time
	attempts                   int // a letter that has died so often stays; none does if 0

	sources map[string]bool // where letters may go
}

// topics returns the topics with dead letters, and notes to which topics they
// may go back: those that a pipeline reads. A header may be forged.
func (f *letterFilter) topics(t *topology.Topology) (names []string) {
	f.sources = map[string]bool{}
	for _, pl := range t.Pipelines {
		f.sources[pl.From.Name] = true
		if pl.DeadLetter != nil && !slices.Contains(names, pl.DeadLetter.Name) {
			names = append(names, pl.DeadLetter.Name)
		}
	}
	return names
}

// Why letters stay.
const (
	staysFiltered  = "not chosen"
	staysAttempts  = "died too often"
	staysTruncated = "cut off"
	staysNoSource  = "no known source"
	staysTooLarge  = "too large for its topic"
	staysLimit     = "beyond --max"
	staysLater     = "came during the run"
)

// stays returns why a letter is not sent back, or "".
func (f *letterFilter) stays(letter *pipeline.Record) string {
	header := func(key string) string {
		v, _ := letter.Header(key)
		return string(v)
	}
	chosen := func(key string, of []string) bool { return len(of) == 0 || slices.Contains(of, header(key)) }
	if !chosen(deadletter.HeaderReason, f.reasons) || !chosen(deadletter.HeaderStage, f.stages) || !chosen(deadletter.HeaderPipeline, f.pipelines) {
		return staysFiltered
	}
	if !f.since.IsZero() {
		if at, err := time.Parse(time.RFC3339Nano, header(deadletter.HeaderTime)); err != nil || at.Before(f.since) {
			return staysFiltered
		}
	}
	switch _, cut := letter.Header(deadletter.HeaderTruncated); {
	case !f.sources[header(deadletter.HeaderSourceTopic)]:
		return staysNoSource
	case cut:
		return staysTruncated
	case f.attempts > 0 && attempts(letter) >= f.attempts:
		return staysAttempts
	}
	return ""
}

// attempts returns how often a letter has died.
func attempts(letter *pipeline.Record) int {
	v, _ := letter.Header(deadletter.HeaderAttempt)
	n, err := strconv.Atoi(string(v))
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// letterPlace is a partition of a topic with dead letters.
type letterPlace struct {
	topic     string
	partition int32
}

// findPending returns what the group has not dealt with yet. Partitions without
// are left out.
func findPending(ctx context.Context, cfg kafka.Config, group string, topics []string) (map[letterPlace]kafka.Bounds, error) {
	d, err := kafka.Describe(ctx, cfg, topics, []string{group}, nil)
	if err != nil {
		return nil, err
	}
	pending := map[letterPlace]kafka.Bounds{}
	for _, topic := range topics {
		if err := d.Hidden[topic]; err != nil {
			return nil, fmt.Errorf("topic %s: %w", topic, err)
		}
		if _, there := d.Topics[topic]; !there {
			continue // nobody has died yet
		}
		all, err := kafka.TopicBounds(ctx, cfg, topic, true)
		if err != nil {
			return nil, err
		}
		for partition, b := range all {
			if at, ok := d.Groups[group].Committed[topic][partition]; ok {
				b.Start = max(b.Start, at)
			}
			// The end is that of the last record: a marker of a transaction
			// behind it is not handled by anybody.
			last := int64(-1)
			if err := kafka.ReadRange(ctx, cfg, topic, partition, b, func(r *pipeline.Record) error {
				last = r.Offset
				return nil
			}); err != nil {
				return nil, err
			}
			if last >= 0 {
				pending[letterPlace{topic, partition}] = kafka.Bounds{Start: b.Start, End: last + 1}
			}
		}
	}
	return pending, nil
}

// drive runs the loop until all that was pending is dealt with.
func (r *redriver) drive(ctx context.Context, cfg kafka.Config, log *slog.Logger, topics []string, handler *redriveHandler) error {
	if len(handler.pending) == 0 {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	handler.stop = stop
	loop, err := kafka.NewLoop(kafka.LoopConfig{
		Client: cfg, Group: r.group, Topics: topics, Writes: slices.Concat(topics, slices.Sorted(maps.Keys(r.filter.sources))), Instance: r.instance, Logger: log,
		// Within a transaction no more is waited than a second.
		MaxPoll:    handler.pace.perSecond(),
		NewHandler: func(int) (pipeline.Handler, error) { return handler, nil },
	})
	if err != nil {
		return err
	}
	return loop.Run(ctx)
}

// redriveHandler sends letters back. It is a [pipeline.Handler].
type redriveHandler struct {
	filter  *letterFilter
	limit   int
	pace    *pace
	pending map[letterPlace]kafka.Bounds // what is to be dealt with
	limits  kafka.Limits                 // of what the topics take
	stop    func()                       // called when it is

	batch redriveCounts         // of the batch at hand
	seen  map[letterPlace]int64 // next offset, of the batch at hand

	mu    sync.Mutex // guards what follows
	total redriveCounts
	done  map[letterPlace]int64 // next offset, committed
}

// redriveCounts says what became of letters.
type redriveCounts struct {
	Sent   int            `json:"sent"`             // back to where they came from
	To     map[string]int `json:"to"`               // the same by topic
	Stayed map[string]int `json:"stayed,omitempty"` // by reason
}

func (c *redriveCounts) add(other *redriveCounts) {
	c.Sent += other.Sent
	for _, m := range []struct {
		to   *map[string]int
		from map[string]int
	}{{&c.To, other.To}, {&c.Stayed, other.Stayed}} {
		for k, n := range m.from {
			count(m.to, k, n)
		}
	}
}

func count(m *map[string]int, key string, n int) {
	if *m == nil {
		*m = map[string]int{}
	}
	(*m)[key] += n
}

// Limit implements [kafka.Limited].
func (h *redriveHandler) Limit(limits kafka.Limits) { h.limits = limits }

// Handle implements [pipeline.Handler].
func (h *redriveHandler) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	place := letterPlace{in.Topic, in.Partition}
	why := ""
	if in.Offset >= h.pending[place].End {
		why = staysLater
	} else {
		if h.seen == nil {
			h.seen = map[letterPlace]int64{}
		}
		h.seen[place] = in.Offset + 1
		if why = h.filter.stays(in); why == "" && h.limit > 0 && h.total.Sent+h.batch.Sent >= h.limit {
			why = staysLimit
		}
	}
	back := sentBack(in)
	if why == "" && back.Size() > h.limits.Record(back.Topic) {
		why = staysTooLarge
	}
	if why != "" {
		if why != staysLater {
			count(&h.batch.Stayed, why, 1)
		}
		stays := *in
		out.Emit(&stays)
		return nil
	}
	if err := h.pace.wait(ctx); err != nil {
		return err
	}
	h.batch.Sent++
	count(&h.batch.To, back.Topic, 1)
	out.Emit(&back)
	return nil
}

// sentBack returns the record that a letter was, for the topic that it comes from.
func sentBack(letter *pipeline.Record) pipeline.Record {
	source, _ := letter.Header(deadletter.HeaderSourceTopic)
	back := *letter
	back.Topic, back.Partition = string(source), pipeline.KeyPartition
	back.Headers = make([]pipeline.Header, 0, len(letter.Headers))
	for _, have := range letter.Headers {
		if have.Key == deadletter.HeaderAttempt || !deadletter.IsHeader(have.Key) {
			back.Headers = append(back.Headers, have)
		}
	}
	return back
}

// Flush implements [pipeline.Handler].
func (h *redriveHandler) Flush(context.Context, pipeline.Emitter) error { return nil }

// EndBatch implements [pipeline.Handler].
func (h *redriveHandler) EndBatch(committed bool) {
	h.mu.Lock()
	if committed {
		h.total.add(&h.batch)
		if h.done == nil {
			h.done = map[letterPlace]int64{}
		}
		maps.Copy(h.done, h.seen)
	}
	h.mu.Unlock()
	h.batch = redriveCounts{}
	clear(h.seen)
	if h.finished() {
		h.stop()
	}
}

// finished reports whether all that was pending is dealt with, or as much as was
// asked for.
func (h *redriveHandler) finished() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limit > 0 && h.total.Sent >= h.limit {
		return true
	}
	for place, b := range h.pending {
		if h.done[place] < b.End {
			return false
		}
	}
	return true
}

// pace keeps to a number of letters per second.
type pace struct {
	rate float64 // 0: no wait
	next time.Time
}

func newPace(rate float64) *pace { return &pace{rate: rate} }

// perSecond returns how many go into a second, at least one, or 0 if there is no
// bound.
func (p *pace) perSecond() int {
	if p.rate == 0 {
		return 0
	}
	return max(1, int(min(p.rate, 4096)))
}

func (p *pace) wait(ctx context.Context) error {
	if p.rate == 0 {
		return nil
	}
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(time.Second) / p.rate))
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// report says what was done.
func (r *redriver) report(h *redriveHandler) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := r.env.Stderr
	if len(h.pending) == 0 {
		fmt.Fprintf(w, "no dead letters are pending for group %s\n", r.group)
	} else {
		fmt.Fprintf(w, "sent back %d dead letters\n", h.total.Sent)
		for _, topic := range slices.Sorted(maps.Keys(h.total.To)) {
			fmt.Fprintf(w, "  to %-30s %10d\n", topic, h.total.To[topic])
		}
		for _, why := range slices.Sorted(maps.Keys(h.total.Stayed)) {
			fmt.Fprintf(w, "  %-33s %10d\n", "stayed: "+why, h.total.Stayed[why])
		}
	}
	if !r.asJSON {
		return nil
	}
	if h.total.To == nil {
		h.total.To = map[string]int{}
	}
	return cli.PrintJSON(r.env.Stdout, struct {
		Group string `json:"group"`
		redriveCounts
	}{r.group, h.total})
}

// listedLetter is a pending letter as --dry-run --json prints it, one a line.
type listedLetter struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key"`
	To        string `json:"to"` // where it would go
	Pipeline  string `json:"pipeline"`
	Stage     string `json:"stage"`
	Reason    string `json:"reason"`
	Error     string `json:"error"`
	Attempt   int    `json:"attempt"`
	Died      string `json:"died"`            // when
	Stays     string `json:"stays,omitempty"` // why
}

// list prints the letters that are pending.
func (r *redriver) list(ctx context.Context, cfg kafka.Config, pending map[letterPlace]kafka.Bounds) error {
	places := slices.SortedFunc(maps.Keys(pending), func(a, b letterPlace) int {
		if a.topic != b.topic {
			return strings.Compare(a.topic, b.topic)
		}
		return int(a.partition - b.partition)
	})
	table := tabwriter.NewWriter(r.env.Stdout, 0, 0, 2, ' ', 0)
	lines := json.NewEncoder(r.env.Stdout)
	sent, stay := 0, 0
	for _, place := range places {
		err := kafka.ReadRange(ctx, cfg, place.topic, place.partition, pending[place], func(rec *pipeline.Record) error {
			header := func(key string) string {
				v, _ := rec.Header(key)
				return string(v)
			}
			l := listedLetter{
				Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset, Key: string(rec.Key), To: header(deadletter.HeaderSourceTopic),
				Pipeline: header(deadletter.HeaderPipeline), Stage: header(deadletter.HeaderStage), Reason: header(deadletter.HeaderReason), Error: header(deadletter.HeaderError),
				Attempt: attempts(rec), Died: header(deadletter.HeaderTime), Stays: r.filter.stays(rec),
			}
			if l.Stays == "" && r.limit > 0 && sent >= r.limit {
				l.Stays = staysLimit
			}
			if l.Stays == "" {
				sent++
			} else {
				stay++
			}
			if r.asJSON {
				return lines.Encode(l)
			}
			if sent+stay == 1 {
				fmt.Fprintln(table, "LETTER\tKEY\tTO\tSTAGE\tREASON\tATTEMPT\tDIED\tERROR")
			}
			to := l.To
			if l.Stays != "" {
				to = "stays: " + l.Stays
			}
			_, err := fmt.Fprintf(table, "%s/%d/%d\t%s\t%s\t%s/%s\t%s\t%d\t%s\t%s\n", l.Topic, l.Partition, l.Offset,
				cli.Cell(l.Key, 40), cli.Cell(to, 40), cli.Cell(l.Pipeline, 30), cli.Cell(l.Stage, 30), cli.Cell(l.Reason, 30), l.Attempt, cli.Cell(l.Died, 30), cli.Cell(l.Error, 80))
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(r.env.Stderr, "%d dead letters are pending for group %s: %d would be sent back, %d would stay\n", sent+stay, r.group, sent, stay)
	return nil
}
