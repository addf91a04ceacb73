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

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// versionStatus is the status of a version. Offsets are sums over all partitions.
type versionStatus struct {
	Projection string  `json:"projection"`
	Version    int     `json:"version"`
	State      string  `json:"state"` // live, previous, building or ready
	Fold       string  `json:"fold"`  // hash of its definition
	Group      string  `json:"group"`
	Snapshots  string  `json:"snapshots"`
	Internal   string  `json:"internal,omitempty"` // topic of the internal records, if they are not on Snapshots
	Done       int64   `json:"done"`               // committed offsets
	Total      int64   `json:"total"`              // offsets on the topic
	Lag        int64   `json:"lag"`                // offsets
	Rate       float64 `json:"rate"`               // offsets per second
	Left       float64 `json:"left_seconds"`       // estimated from the rate; 0 if unknown
	Topology   bool    `json:"topology"`           // the topology has the same definition
	Semantics  int     `json:"semantics"`          // number of the meaning of its fold
	Unknown    string  `json:"unknown,omitempty"`  // why this release cannot compile it
	Differ     *int    `json:"diff,omitempty"`     // aggregates that differ, by the last diff
	Blocked    *int64  `json:"blocked"`            // blocked aggregates; null if no worker answers
	Missing    bool    `json:"orphan,omitempty"`   // the topology has no such projection
}

const (
	versionLive     = "live"
	versionPrevious = "previous"
	versionBuilding = "building"
	versionReady    = "ready"
)

// readyLag is the largest lag of a version that has caught up, in offsets.
const readyLag = 1000

func statusCommand(e *cli.Env) *cobra.Command {
	var o *operator
	interval := time.Second
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the versions of projections, their state and their progress",
		Example: `  projector status`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, state, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			for _, key := range slices.Sorted(maps.Keys(state.Unreadable)) {
				fmt.Fprintf(e.Stderr, "warning: the record %q of %s is not understood and has no effect: %s\n", key, control.Topic(w.Topology), state.Unreadable[key])
			}
			all, err := o.status(cmd.Context(), w, state, interval)
			if err != nil {
				return err
			}
			if o.json {
				return cli.PrintJSON(e.Stdout, all)
			}
			return printStatus(e.Stdout, all)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().DurationVar(&interval, "interval", interval, "how long to measure the rate")
	return cmd
}

func printStatus(w io.Writer, all []versionStatus) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no versions of projections: no `projector run` has started yet")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PROJECTION\tPROJECTION VERSION\tSTATE\tDONE\tLAG\tRATE/S\tLEFT\tDIFFER\tBLOCKED\tFOLD")
	for _, s := range all {
		left, differ := "-", "-"
		if s.Left > 0 {
			left = (time.Duration(s.Left*1000) * time.Millisecond).Round(100 * time.Millisecond).String()
		}
		if s.Differ != nil {
			differ = fmt.Sprint(*s.Differ)
		}
		blocked := "-"
		if s.Blocked != nil {
			blocked = fmt.Sprint(*s.Blocked)
		}
		mark := ""
		if s.Topology {
			mark = " (topology)"
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%.1f%%\t%d\t%.0f\t%s\t%s\t%s\t%.8s%s\n", s.Projection, s.Version, s.State, 100*float64(s.Done)/float64(max(1, s.Total)), s.Lag, s.Rate, left, differ, blocked, s.Fold, mark)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		switch {
		case s.Unknown != "" && s.State == versionLive:
			fmt.Fprintf(w, "\nThis release cannot compile version %d of %s, which is live: %s.\nWorkers of this release build and answer the next version. It becomes live when no worker of an earlier release has partitions.\n", s.Version, s.Projection, s.Unknown)
		case s.Unknown != "":
			fmt.Fprintf(w, "\nThis release cannot compile version %d of %s, and does not run it: %s.\n", s.Version, s.Projection, s.Unknown)
		}
	}
	return nil
}

// status returns the status of all versions. It measures their rates over the interval.
func (o *operator) status(ctx context.Context, w *worker.Worker, state *control.State, interval time.Duration) ([]versionStatus, error) {
	out, topics := recordedVersions(w, state)
	if err := readProgress(ctx, w, out, topics); err != nil {
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
		if err := readProgress(ctx, w, out, topics); err != nil {
			return nil, err
		}
	}
	took := time.Since(began).Seconds()
	if running, err := runningVersions(ctx, w, state); err == nil { // without an answer, the rest is still of use
		for i := range out {
			if slices.ContainsFunc(running, func(r projector.RunningVersion) bool {
				return r.Projection == out[i].Projection && r.Version == out[i].Version
			}) {
				n := countBlocked(running, out[i].Projection, out[i].Version)
				out[i].Blocked = &n
			}
		}
	}
	for i := range out {
		s := &out[i]
		s.Rate = max(0, float64(s.Done-before[i].Done)) / took
		// The topic grows meanwhile, so the lag shrinks by less than the rate.
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

// recordedVersions returns the versions on the control topic, without their progress, and
// the source topics of the projections that the topology has.
func recordedVersions(w *worker.Worker, state *control.State) (out []versionStatus, topics map[string]string) {
	out = []versionStatus{} // JSON has an empty list, not null
	topics = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(state.Versions)) {
		i := slices.IndexFunc(w.Topology.Projections, func(p *topology.Projection) bool { return p.Name == name })
		for _, n := range state.Numbers(name) {
			r := state.Versions[name][n]
			s := versionStatus{Projection: name, Version: n, Fold: r.Hash(), Group: r.Group, Snapshots: r.Snapshots, Internal: r.Internal, Missing: i < 0, Semantics: r.Definition.Meaning()}
			if i >= 0 {
				topics[name] = w.Topology.Projections[i].From.Name
				s.Topology = w.Topology.Projections[i].Fold.WithHash(r.Hash()) != nil
				if err := projector.Uncompilable(w.Topology, w.Topology.Projections[i], r); err != nil {
					s.Unknown = err.Error()
				}
			}
			if d, ok := state.Diffs[name]; ok && d.New == n {
				s.Differ = &d.Differ
			}
			out = append(out, s)
		}
	}
	return out, topics
}

// readProgress sets the offsets of versions whose source topic is known.
func readProgress(ctx context.Context, w *worker.Worker, versions []versionStatus, topics map[string]string) error {
	for i := range versions {
		s := &versions[i]
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
