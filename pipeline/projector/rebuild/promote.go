package rebuild

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/worker"
)

func promoteCommand(e *cli.Env) *cobra.Command {
	var o *operator
	force, allowBlocked := false, false
	maxLag := int64(readyLag)
	cmd := &cobra.Command{
		Use:   "promote NAME",
		Short: "Make the newest version of a projection live",
		Long: `Writes one record, on which all workers switch queries to the newest version. No
query fails: a query in flight is answered by the version that it began with. The
previous version keeps reading until it is retired, so rollback is as fast.

promote fails if the version has not caught up, has not been compared with the live
version (projector diff), or if more than one in 100 of its aggregates are blocked by an
event that cannot be folded. --allow-blocked skips the last check, --force all of them.`,
		Example: `  projector diff user && projector promote user`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.promote(cmd.Context(), args[0], maxLag, force, allowBlocked)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().BoolVar(&force, "force", false, "skip the checks")
	cmd.Flags().BoolVar(&allowBlocked, "allow-blocked", false, "allow any number of blocked aggregates")
	cmd.Flags().Int64Var(&maxLag, "max-lag", maxLag, "allow a lag of `n` offsets")
	e.CompleteProjection(cmd)
	return cmd
}

func (o *operator) promote(ctx context.Context, name string, maxLag int64, force, allowBlocked bool) error {
	w, state, pr, err := o.projection(ctx, name)
	if err != nil {
		return err
	}
	to, err := newest(state, pr.Name)
	if err != nil {
		return err
	}
	live := state.Live[pr.Name]
	done, total, err := kafka.GroupProgress(ctx, w.Kafka, to.Group, pr.From.Name)
	if err != nil {
		return err
	}
	diff := state.Diffs[pr.Name]
	switch {
	case force:
	case total-done > maxLag:
		return fmt.Errorf("version %d of %s lags by %d of %d offsets, more than %d: wait, or use --max-lag or --force", to.Version, pr.Name, total-done, total, maxLag)
	case diff.Old != live.Version || diff.New != to.Version:
		return fmt.Errorf("version %d of %s has not been compared with version %d, which is live: run `projector diff %s`, or use --force", to.Version, pr.Name, live.Version, pr.Name)
	}
	if !force && !allowBlocked {
		if err := checkBlocked(ctx, w, state, pr.Name, to.Version, diff.Aggregates); err != nil {
			return err
		}
	}
	return o.setLive(ctx, w, pr.Name, live.Version, to.Version)
}

// maxBlocked is the share of blocked aggregates that promote accepts.
const maxBlocked = 0.01

// checkBlocked fails if too many aggregates of a version are blocked. total is the number
// of aggregates in the last comparison.
func checkBlocked(ctx context.Context, w *worker.Worker, state *control.State, name string, version, total int) error {
	running, err := runningVersions(ctx, w, state)
	if err != nil {
		return fmt.Errorf("counting the blocked aggregates of version %d: %w; --allow-blocked skips this", version, err)
	}
	n := countBlocked(running, name, version)
	if all := max(int64(total), n); float64(n) > maxBlocked*float64(all) {
		return fmt.Errorf("%d of %d aggregates in version %d of %s are blocked, and get no later events: `projector status` counts them, the log of the workers has the reason of each. Correct the fold and rebuild again, or use --allow-blocked",
			n, all, version, name)
	}
	return nil
}

// countBlocked returns the number of blocked aggregates of a version.
func countBlocked(running []projector.RunningVersion, name string, version int) (n int64) {
	seen := map[int32]bool{}
	for _, r := range running {
		if r.Projection != name || r.Version != version {
			continue
		}
		for p, blocked := range r.Blocked {
			if !seen[p] { // a partition that moves may be with two workers
				n, seen[p] = n+blocked, true
			}
		}
	}
	return n
}

// setLive makes another version live.
func (o *operator) setLive(ctx context.Context, w *worker.Worker, name string, from, to int) error {
	r := control.LiveRecord{Format: control.Format, Version: to, Previous: from, Time: o.env.Now().UTC(), By: o.env.Build.Version}
	if err := o.write(ctx, w, control.Record{Key: control.LiveKey(name), Value: r}); err != nil {
		return err
	}
	if o.json {
		return cli.PrintJSON(o.env.Stdout, r)
	}
	fmt.Fprintf(o.env.Stdout, "version %d of %s is live; version %d keeps reading until it is retired\n", to, name, from)
	return nil
}

func rollbackCommand(e *cli.Env) *cobra.Command {
	var o *operator
	cmd := &cobra.Command{
		Use:     "rollback NAME",
		Short:   "Make the version before the last promote live again",
		Example: `  projector rollback user`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, state, pr, err := o.projection(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			live := state.Live[pr.Name]
			if _, ok := state.Versions[pr.Name][live.Previous]; !ok {
				return fmt.Errorf("version %d of %s has no previous version to return to: it is the first live version, or the previous one was retired", live.Version, pr.Name)
			}
			return o.setLive(cmd.Context(), w, pr.Name, live.Version, live.Previous)
		},
	}
	o = newOperator(e, cmd.Flags())
	e.CompleteProjection(cmd)
	return cmd
}
