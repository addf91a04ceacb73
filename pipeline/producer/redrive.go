package producer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// redriver sends dead letters back to their source topics, for the pipelines that wrote
// them. Other readers of these topics skip them.
//
// It reads the dead letters as a consumer group and writes in the transactions
// that commit the group's offsets, so each letter goes back exactly once. A letter
// is pending until the group has committed an offset after it. A letter that stays
// is written to the end of its topic in the same transaction and is pending again:
// a run with a filter hides nothing from the next run.
type redriver struct {
	env      *cli.Env
	kafka    *cli.KafkaFlags
	topology *cli.TopologyFlags
	log      *cli.LogFlags

	group     string
	instance  string
	filter    letterFilter
	since     string
	limit     int
	rate      float64
	compacted bool
	dryRun    bool
	asJSON    bool
}

func redriveCommand(e *cli.Env) *cobra.Command {
	r := &redriver{env: e}
	cmd := &cobra.Command{
		Use:   "redrive",
		Short: "Send dead letters back to their source topics",
		Long: `Sends the dead letters of the topology's pipelines back to their source topics,
each exactly once, with the original key, value and headers. The header
dlq.redrive names the pipeline that wrote the letter. Only this pipeline handles
the record: all others, projections and tables skip it. Programs other than
Millrace see it as a record of the topic, and must skip records with this header.
The header dlq.attempt counts the failures of a record.

The record is at the end of its topic, after later records of its key.

A letter stays if a filter excludes it, if its value is truncated, if it has
failed too often, if it is too large for its source topic, or if the topology has
no such pipeline that reads this topic. It also stays if the source topic is
compacted, because it would replace newer records of its key: --compacted sends
it anyway. Letters of a projection (late:) cannot be sent back: the events would
be late again.

A letter that stays is written to the end of the dead-letter topic in the same
transaction, and the next run finds it. Letters that arrive during a run wait for
the next run.

Exit code 0 if all pending letters were handled; 1 if Kafka failed or the command
was interrupted. The letters reported as sent back are committed, and the next
run continues after them.`,
		Example: `  producer redrive --dry-run
  producer redrive --reason expression --since 24h
  producer redrive --max 100 --rate 10`,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	r.kafka = e.KafkaFlags(flags, "producer")
	r.topology = e.TopologyFlags(flags)
	r.log = e.LogFlags(flags)
	flags.StringVarP(&r.group, "group", "g", "", "consumer `group` that records which letters were handled (default: the topology's name and -redrive)")
	flags.StringVar(&r.instance, "instance", "0", "`name` of this run, unique among the concurrent runs of the group")
	flags.StringSliceVar(&r.filter.reasons, "reason", nil, "only letters with one of these `reasons`")
	flags.StringSliceVar(&r.filter.stages, "stage", nil, "only letters of these `stages`: STAGE or PIPELINE/STAGE")
	flags.StringSliceVar(&r.filter.pipelines, "pipeline", nil, "only letters of these `pipelines`")
	flags.StringVar(&r.since, "since", "", "only letters that failed since a `time` (RFC 3339), or within a duration such as 24h")
	flags.IntVar(&r.filter.attempts, "max-attempts", 5, "letters that failed this often stay; 0 means no limit")
	flags.IntVar(&r.limit, "max", 0, "maximum number of letters to send back; 0 means all")
	flags.Float64Var(&r.rate, "rate", 0, "letters per second; 0 means no limit")
	flags.BoolVar(&r.compacted, "compacted", false, "send back letters of compacted topics, although each replaces newer records of its key")
	flags.BoolVar(&r.dryRun, "dry-run", false, "list the pending letters and what would happen to them, and change nothing")
	flags.BoolVar(&r.asJSON, "json", false, "print the list or the summary as JSON on stdout")
	e.BindEnv(flags, "group")
	return cmd
}

func (r *redriver) run(ctx context.Context) error {
	if err := r.checkFlags(); err != nil {
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
	cfg.Partitioners, cfg.Patience = t.Partitioners(), kafka.CommandPatience
	pending, err := r.prepare(ctx, cfg, t, topics)
	if err != nil {
		return err
	}
	if r.dryRun {
		return r.list(ctx, t, cfg, pending)
	}
	handler := &redriveHandler{filter: &r.filter, limit: r.limit, pace: newPace(r.rate), pending: pending, now: r.env.Now}
	err = r.drive(ctx, cfg, log, topics, handler)
	if reported := r.report(handler); reported != nil {
		return reported
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil && !handler.finished():
		return context.Cause(ctx)
	}
	return nil
}

// prepare completes and checks the filter, and returns the pending letters.
func (r *redriver) prepare(ctx context.Context, cfg kafka.Config, t *topology.Topology, topics []string) (map[letterPlace]kafka.Bounds, error) {
	d, err := kafka.Describe(ctx, cfg, slices.Concat(topics, r.filter.sourceTopics()), []string{r.group}, nil)
	if err != nil {
		return nil, err
	}
	if !r.compacted {
		r.filter.keepCompacted(t, d)
	}
	pending, err := findPending(ctx, cfg, d, r.group, topics)
	if err != nil {
		return nil, err
	}
	pending.names.addKnown(t)
	return pending.bounds, pending.names.check(&r.filter, t)
}

func (r *redriver) checkFlags() (err error) {
	switch {
	case r.filter.attempts < 0:
		return cli.Usagef("--max-attempts: %d is negative; 0 means no limit", r.filter.attempts)
	case r.limit < 0:
		return cli.Usagef("--max: %d is negative; 0 means all", r.limit)
	case r.rate < 0 || r.rate > 1e9:
		return cli.Usagef("--rate: %v is not a number of letters per second; 0 means no limit", r.rate)
	}
	r.filter.since, err = sinceTime(r.since, r.env.Now())
	return err
}

// sinceTime reads --since: a time, or a duration before now.
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

// drive runs the loop until all pending letters are handled.
func (r *redriver) drive(ctx context.Context, cfg kafka.Config, log *slog.Logger, topics []string, handler *redriveHandler) error {
	if len(handler.pending) == 0 {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	handler.stop = stop
	loop, err := kafka.NewLoop(kafka.LoopConfig{
		Client: cfg, Group: r.group, Topics: topics, Writes: slices.Concat(topics, r.filter.sourceTopics()), Instance: r.instance, Logger: log,
		// A batch has at most the letters of one second: the pace must not keep a
		// transaction open for longer.
		MaxPoll:    handler.pace.perSecond(),
		NewHandler: func(int) (pipeline.Handler, error) { return handler, nil },
	})
	if err != nil {
		return err
	}
	return loop.Run(ctx)
}

// report prints the result of a run.
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
