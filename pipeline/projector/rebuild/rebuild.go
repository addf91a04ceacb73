// Package rebuild holds the commands that change versions of projections: rebuild,
// status, diff, promote, rollback, retire and forget.
//
// Start at [RebuildCommand].
package rebuild

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// operator is a person at the control topic: it starts, compares and retires
// versions of projections, and says which of them answers.
type operator struct {
	env    *cli.Env
	remote *worker.RemoteFlags
	json   bool
}

func newOperator(e *cli.Env, flags *pflag.FlagSet) *operator {
	o := &operator{env: e, remote: worker.AddRemoteFlags(e, flags)}
	flags.BoolVar(&o.json, "json", false, "print JSON")
	return o
}

// open connects, and reads what there is.
func (o *operator) open(ctx context.Context) (*worker.Worker, *control.State, error) {
	w, err := o.remote.Open()
	if err != nil {
		return nil, nil, err
	}
	if err := w.Kafka.Ping(ctx); err != nil {
		return nil, nil, err
	}
	state, err := control.Read(ctx, w.Kafka, control.Topic(w.Topology))
	return w, state, err
}

// projection is open, and finds one projection and the number of its live version.
func (o *operator) projection(ctx context.Context, name string) (*worker.Worker, *control.State, *topology.Projection, error) {
	w, state, err := o.open(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	i := slices.IndexFunc(w.Topology.Projections, func(p *topology.Projection) bool { return p.Name == name })
	if i < 0 {
		return nil, nil, nil, cli.Usagef("the topology has no projection %s", name)
	}
	if _, ok := state.Live[name]; !ok {
		return nil, nil, nil, fmt.Errorf("no worker has run projection %s yet: start `projector run` first", name)
	}
	return w, state, w.Topology.Projections[i], nil
}

// newest returns the newest version that is not live, or an error that says what
// to do.
func newest(state *control.State, name string) (control.VersionRecord, error) {
	numbers := state.Numbers(name)
	if n := numbers[len(numbers)-1]; n != state.Live[name].Version {
		return state.Versions[name][n], nil
	}
	return control.VersionRecord{}, fmt.Errorf("projection %s has no version newer than %d, which is live: `projector rebuild %s` makes one", name, state.Live[name].Version, name)
}

func (o *operator) say(ctx context.Context, w *worker.Worker, said ...control.Record) error {
	return control.Write(ctx, w.Kafka, control.Topic(w.Topology), o.env.Now(), said...)
}

func RebuildCommand(e *cli.Env) *cobra.Command {
	var o *operator
	force := false
	cmd := &cobra.Command{
		Use:   "rebuild NAME",
		Short: "Build a projection anew, as the topology has it now, beside the one that answers",
		Long: `Writes the topology's definition of the projection down as its next version. All
workers begin to build it from the start of the log, with states, snapshots topic
and consumer group of its own, while the live version goes on answering. Then:

  projector status            how far it is
  projector diff NAME         in what it differs from the live version
  projector promote NAME      let it answer
  projector rollback NAME     let the one before answer again
  projector retire NAME N     stop a version and delete what it kept

A version that is not live publishes its snapshots and does nothing else that
others could see.`,
		Example: `  projector rebuild user -t topology.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, state, pr, err := o.projection(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			for _, n := range state.Numbers(pr.Name) {
				if state.Versions[pr.Name][n].Fold == pr.Fold.Hash() && !force {
					what := "is there already: `projector status` shows how far it is"
					if n == state.Live[pr.Name].Version {
						what = "answers already: there is nothing to rebuild. --force builds the same once more"
					}
					return fmt.Errorf("version %d of projection %s is what the topology has, and %s", n, pr.Name, what)
				}
			}
			numbers := state.Numbers(pr.Name)
			record, err := projector.NewVersion(e, o.remote.Topology, w.Topology, pr, max(numbers[len(numbers)-1], state.Live[pr.Name].Previous, state.Diffs[pr.Name].New)+1)
			if err != nil {
				return &cli.ExitError{Code: cli.ExitUsage, Err: err}
			}
			if err := o.say(cmd.Context(), w, control.Record{Key: control.VersionKey(pr.Name, record.Version), Value: record}); err != nil {
				return err
			}
			if o.json {
				return cli.PrintJSON(e.Stdout, record)
			}
			fmt.Fprintf(e.Stdout, "version %d of %s is being built by the workers; version %d goes on answering\n", record.Version, pr.Name, state.Live[pr.Name].Version)
			return nil
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().BoolVar(&force, "force", false, "also if a version is made by the same definition")
	return cmd
}

// versionStatus is how a version is.
type versionStatus struct {
	Projection string  `json:"projection"`
	Version    int     `json:"version"`
	State      string  `json:"state"` // live, previous, building or ready
	Fold       string  `json:"fold"`
	Group      string  `json:"group"`
	Snapshots  string  `json:"snapshots"`
	Done       int64   `json:"done"` // offsets
	Total      int64   `json:"total"`
	Lag        int64   `json:"lag"`
	Rate       float64 `json:"rate"`             // offsets a second
	Left       float64 `json:"left_seconds"`     // at that rate; 0 if not known
	Topology   bool    `json:"topology"`         // it is what the topology has
	Differ     *int    `json:"diff,omitempty"`   // aggregates that a diff found to differ
	Missing    bool    `json:"orphan,omitempty"` // the topology has no such projection
}

const (
	versionLive     = "live"
	versionPrevious = "previous"
	versionBuilding = "building"
	versionReady    = "ready"
)

// readyLag is the lag up to which a version counts as caught up.
const readyLag = 1000

func StatusCommand(e *cli.Env) *cobra.Command {
	var o *operator
	interval := time.Second
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the versions of projections, which of them answers, and how far each is",
		Example: `  projector status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, state, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			all, err := o.status(cmd.Context(), w, state, interval)
			if err != nil {
				return err
			}
			if o.json {
				return cli.PrintJSON(e.Stdout, all)
			}
			t := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "PROJECTION\tVERSION\tSTATE\tDONE\tLAG\tRATE/S\tLEFT\tDIFFER\tFOLD")
			for _, s := range all {
				left, differ := "-", "-"
				if s.Left > 0 {
					left = (time.Duration(s.Left*1000) * time.Millisecond).Round(100 * time.Millisecond).String()
				}
				if s.Differ != nil {
					differ = fmt.Sprint(*s.Differ)
				}
				mark := ""
				if s.Topology {
					mark = " (topology)"
				}
				fmt.Fprintf(t, "%s\t%d\t%s\t%.1f%%\t%d\t%.0f\t%s\t%s\t%.8s%s\n", s.Projection, s.Version, s.State, 100*float64(s.Done)/float64(max(1, s.Total)), s.Lag, s.Rate, left, differ, s.Fold, mark)
			}
			return t.Flush()
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().DurationVar(&interval, "interval", interval, "how long to look, to tell the rate")
	return cmd
}

// status looks twice at how far versions are.
func (o *operator) status(ctx context.Context, w *worker.Worker, state *control.State, interval time.Duration) ([]versionStatus, error) {
	out := []versionStatus{}
	topics := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(state.Versions)) {
		i := slices.IndexFunc(w.Topology.Projections, func(p *topology.Projection) bool { return p.Name == name })
		for _, n := range state.Numbers(name) {
			r := state.Versions[name][n]
			s := versionStatus{Projection: name, Version: n, Fold: r.Fold, Group: r.Group, Snapshots: r.Snapshots, Missing: i < 0}
			if i >= 0 {
				topics[name] = w.Topology.Projections[i].From.Name
				s.Topology = w.Topology.Projections[i].Fold.Hash() == r.Fold
			}
			if d, ok := state.Diffs[name]; ok && d.New == n {
				s.Differ = &d.Differ
			}
			out = append(out, s)
		}
	}
	look := func() error {
		for i := range out {
			s := &out[i]
			if topics[s.Projection] == "" {
				continue
			}
			var err error
			if s.Done, s.Total, err = kafka.GroupProgress(ctx, w.Kafka, s.Group, topics[s.Projection]); err != nil {
				return err
			}
			s.Lag = s.Total - s.Done
		}
		return nil
	}
	if err := look(); err != nil {
		return nil, err
	}
	before, began := slices.Clone(out), time.Now()
	if interval > 0 {
		t := time.NewTimer(interval)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.C:
		}
		if err := look(); err != nil {
			return nil, err
		}
	}
	took := time.Since(began).Seconds()
	for i := range out {
		s := &out[i]
		s.Rate = max(0, float64(s.Done-before[i].Done)) / took
		if gained := s.Rate - float64(s.Total-before[i].Total)/took; s.Lag > 0 && gained > 0 {
			s.Left = float64(s.Lag) / gained
		}
		live := state.Live[s.Projection]
		switch {
		case s.Version == live.Version:
			s.State = versionLive
		case s.Version == live.Previous:
			s.State = versionPrevious
		case s.Lag <= readyLag:
			s.State = versionReady
		default:
			s.State = versionBuilding
		}
	}
	return out, nil
}

func PromoteCommand(e *cli.Env) *cobra.Command {
	var o *operator
	force := false
	maxLag := int64(readyLag)
	cmd := &cobra.Command{
		Use:   "promote NAME",
		Short: "Let the newest version of a projection answer questions",
		Long: `Writes one record, at which all workers turn questions to the newest version. No
question fails: those at hand are answered by the version that they began with.
The version before goes on reading until it is retired, so that rollback is as
quick.

Refused if the version has not caught up, or if nobody has compared it with the
live one (projector diff); --force does it all the same.`,
		Example: `  projector diff user && projector promote user`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, state, pr, err := o.projection(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			to, err := newest(state, pr.Name)
			if err != nil {
				return err
			}
			live := state.Live[pr.Name]
			done, total, err := kafka.GroupProgress(cmd.Context(), w.Kafka, to.Group, pr.From.Name)
			if err != nil {
				return err
			}
			diff := state.Diffs[pr.Name]
			switch {
			case force:
			case total-done > maxLag:
				return fmt.Errorf("version %d of %s has yet to read %d of %d offsets, and may lack %d at most: wait, or say --max-lag or --force", to.Version, pr.Name, total-done, total, maxLag)
			case diff.Old != live.Version || diff.New != to.Version:
				return fmt.Errorf("nobody has compared version %d of %s with version %d, which is live: run `projector diff %s`, or say --force", to.Version, pr.Name, live.Version, pr.Name)
			}
			return o.flip(cmd.Context(), w, pr.Name, live.Version, to.Version)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().BoolVar(&force, "force", false, "whatever speaks against it")
	cmd.Flags().Int64Var(&maxLag, "max-lag", maxLag, "`offsets` that the version may have yet to read")
	return cmd
}

// flip lets another version answer.
func (o *operator) flip(ctx context.Context, w *worker.Worker, name string, from, to int) error {
	r := control.LiveRecord{Format: control.Format, Version: to, Previous: from, Time: o.env.Now().UTC(), By: o.env.Build.Version}
	if err := o.say(ctx, w, control.Record{Key: control.LiveKey(name), Value: r}); err != nil {
		return err
	}
	if o.json {
		return cli.PrintJSON(o.env.Stdout, r)
	}
	fmt.Fprintf(o.env.Stdout, "version %d of %s answers now; version %d stays beside it until it is retired\n", to, name, from)
	return nil
}

func RollbackCommand(e *cli.Env) *cobra.Command {
	var o *operator
	cmd := &cobra.Command{
		Use:     "rollback NAME",
		Short:   "Let the version answer again that did before promote",
		Example: `  projector rollback user`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, state, pr, err := o.projection(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			live := state.Live[pr.Name]
			if _, ok := state.Versions[pr.Name][live.Previous]; !ok {
				return fmt.Errorf("version %d of %s is the only one that ever answered, or the one before was retired: there is nothing to go back to", live.Version, pr.Name)
			}
			return o.flip(cmd.Context(), w, pr.Name, live.Version, live.Previous)
		},
	}
	o = newOperator(e, cmd.Flags())
	return cmd
}

// retireWait is how long retire waits for the workers to let go.
const retireWait = 30 * time.Second

func RetireCommand(e *cli.Env) *cobra.Command {
	var o *operator
	number, snapshots := 0, false
	cmd := &cobra.Command{
		Use:   "retire NAME --version N",
		Short: "Stop a version of a projection and delete what it kept",
		Long: `The workers stop the version and free its part of their stores; then its consumer
group and its snapshots topic are deleted. The group and the topic of version 1
stay: the group is that of all first versions, and the topic is the one that
topology.yaml names. --snapshots deletes that topic, too.

The live version cannot be retired. After the one before is, there is no rollback.`,
		Example: `  projector retire user --version 1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			w, state, pr, err := o.projection(ctx, args[0])
			if err != nil {
				return err
			}
			r, ok := state.Versions[pr.Name][number]
			switch {
			case !ok:
				return cli.Usagef("projection %s has no version %d; it has %v: name one with --version", pr.Name, number, state.Numbers(pr.Name))
			case number == state.Live[pr.Name].Version:
				return fmt.Errorf("version %d of %s is live: promote another one first", number, pr.Name)
			}
			if err := o.say(ctx, w, control.Record{Key: control.VersionKey(pr.Name, number)}); err != nil {
				return err
			}
			// Snapshots are deleted when nobody writes them any more: brokers may
			// create a topic that is written to.
			if number > 1 {
				if err := awaitRelease(ctx, w, r.Group); err != nil {
					return err
				}
				if err := kafka.DeleteGroup(ctx, w.Kafka, r.Group); err != nil {
					return err
				}
			}
			if number > 1 || snapshots {
				if err := kafka.DeleteTopic(ctx, w.Kafka, r.Snapshots); err != nil {
					return err
				}
			}
			if !o.json {
				fmt.Fprintf(e.Stdout, "version %d of %s is retired\n", number, pr.Name)
				return nil
			}
			return cli.PrintJSON(e.Stdout, struct {
				Projection string `json:"projection"`
				Retired    int    `json:"retired"`
			}{pr.Name, number})
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().IntVar(&number, "version", 0, "`number` of the version")
	cmd.Flags().BoolVar(&snapshots, "snapshots", false, "delete the snapshots of version 1, too")
	return cmd
}

// awaitRelease waits until no worker has anything of a group. One that was killed
// and has not come back says that it has until somebody else takes over.
func awaitRelease(ctx context.Context, w *worker.Worker, group string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, retireWait, fmt.Errorf("a worker has not let go of group %s within %v; retire once more when it has", group, retireWait))
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := control.Read(ctx, w.Kafka, control.Topic(w.Topology))
		if err != nil && ctx.Err() == nil {
			return err
		}
		held := false
		for _, other := range state.Workers {
			if _, has := other.Has[group]; has && reachable(ctx, other.Address) {
				held = true
			}
		}
		if !held {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// reachable reports whether a worker answers at all.
func reachable(ctx context.Context, addr string) bool {
	return askWorker(ctx, addr, "/livez", func(io.Reader) error { return nil }) == nil
}
