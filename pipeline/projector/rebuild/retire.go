package rebuild

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka/admin"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/worker"
)

// releaseTimeout is how long retire waits until all workers have released a version.
const releaseTimeout = 30 * time.Second

func retireCommand(e *cli.Env) *cobra.Command {
	var o *operator
	number, snapshots := 0, false
	cmd := &cobra.Command{
		Use:   "retire NAME --version N",
		Short: "Stop a version of a projection and delete its data",
		Long: `The workers stop the version and delete its data from their stores. Then retire
deletes its consumer group, its snapshots topic and its topic of internal records. It
keeps the group and the topics of version 1: all first versions share the group, and
topology.yaml names the snapshots topic. --snapshots deletes those topics too.

The live version cannot be retired. Retiring the previous version makes a rollback
impossible.`,
		Example: `  projector retire user --version 1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.retire(cmd.Context(), args[0], number, snapshots)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().IntVar(&number, "version", 0, "`number` of the version")
	cmd.Flags().BoolVar(&snapshots, "snapshots", false, "delete the snapshots of version 1 too")
	e.CompleteProjection(cmd)
	return cmd
}

func (o *operator) retire(ctx context.Context, name string, number int, snapshots bool) error {
	w, state, pr, err := o.projection(ctx, name)
	if err != nil {
		return err
	}
	r, ok := state.Versions[pr.Name][number]
	switch {
	case !ok:
		return cli.Usagef("projection %s has no version %d; it has %v: name one with --version", pr.Name, number, state.Numbers(pr.Name))
	case number == state.Live[pr.Name].Version:
		return fmt.Errorf("version %d of %s is live: promote another version first", number, pr.Name)
	}
	if err := o.write(ctx, w, control.Record{Key: control.VersionKey(pr.Name, number)}); err != nil {
		return err
	}
	if number > 1 {
		// Only after the release: brokers may create a topic again that somebody writes to.
		if err := awaitRelease(ctx, w, r.Group); err != nil {
			return err
		}
		if err := admin.DeleteGroup(ctx, w.Kafka, r.Group); err != nil {
			return err
		}
	}
	if number > 1 || snapshots {
		// Without its internal records, a version folds the log again.
		for _, topic := range []string{r.Internal, r.Snapshots} {
			if topic == "" {
				continue
			}
			if err := admin.DeleteTopic(ctx, w.Kafka, topic); err != nil {
				return err
			}
		}
	}
	if !o.json {
		fmt.Fprintf(o.env.Stdout, "version %d of %s is retired\n", number, pr.Name)
		return nil
	}
	return cli.PrintJSON(o.env.Stdout, struct {
		Projection string `json:"projection"`
		Retired    int    `json:"retired"`
	}{pr.Name, number})
}

// awaitRelease waits until no worker has partitions of a group. The record of a killed
// worker keeps its partitions until another worker takes over, so a worker that does not
// answer does not count.
func awaitRelease(ctx context.Context, w *worker.Worker, group string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, releaseTimeout, fmt.Errorf("a worker has not released group %s within %v; retire the version again when it has", group, releaseTimeout))
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := control.ReadState(ctx, w.Kafka, control.Topic(w.Topology))
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		held := false
		for _, other := range state.Workers {
			if _, has := other.Partitions[group]; has && reachable(ctx, w.Dial, other.Address) {
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
