package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/worker"
)

// exitChanges is the exit code of plan --exit-code if apply would do something.
const exitChanges = 3

// PlanCommand returns `processor plan`.
func PlanCommand(e *cli.Env) *cobra.Command {
	c := &planner{env: e}
	exitCode := false
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what apply would change, and which edits are unsafe",
		Long: `Compare the topology with the cluster, with the registry, and with the topology
that was applied last, which is stored on the compacted topic NAME-control. Show
what apply would do: create topics, set their configuration, register schemas.
plan itself changes nothing.

plan refuses an edit that loses something, with the reason and a hint: a renamed
stage that has state, another id of dedupe, another key of mask or rekey, a
pipeline that reads another topic, is removed before it has read everything, or
would write again what its predecessor wrote, a projection that is removed or
begins again, a shorter retention, an incompatible schema. --allow NAME allows an
edit that is intended. An edit that could not work cannot be allowed. For every
other changed parameter, plan says what it means for what was written before.

Workers do not need plan or apply: run creates topics and registers schemas
itself. If no topology was applied yet, plan compares only with the cluster and
the registry.

Exit code 0 if no edit is refused; 1 if one is; 2 if the command line or the
topology is wrong; with --exit-code 3 if apply would do something.`,
		Example: `  processor plan
  processor plan --allow orphaned-state:enrich/dedupe
  processor plan --json --exit-code`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := c.plan(cmd.Context())
			if err != nil {
				return err
			}
			if err := c.show(p, false); err != nil {
				return err
			}
			switch {
			case p.refused():
				return &cli.ExitError{Code: cli.ExitFailure}
			case exitCode && len(p.Steps) > 0:
				return &cli.ExitError{Code: exitChanges}
			}
			return nil
		},
	}
	c.addFlags(cmd)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 3 if apply would do something")
	return cmd
}

// ApplyCommand returns `processor apply`.
func ApplyCommand(e *cli.Env) *cobra.Command {
	c := &planner{env: e}
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Carry out the plan, unless an edit is refused",
		Long: `Make a plan, like the command plan. If no edit in it is refused, create topics,
set their declared configuration, register schemas, and store the applied topology
on the topic NAME-control, in this order. apply does not repeat what is done
already: after a failure, run it again.

apply starts and stops no workers, deletes nothing, and moves no offsets.

Exit code 0 if everything is done; 1 if an edit is refused, in which case nothing
was done, or if a step failed; 2 if the command line or the topology is wrong.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd.Context()) },
	}
	c.addFlags(cmd)
	return cmd
}

// A planner holds the flags of plan and apply.
type planner struct {
	env    *cli.Env
	remote *worker.RemoteFlags
	allow  []string
	json   bool

	transactionTimeout time.Duration // of the workers
}

func (c *planner) addFlags(cmd *cobra.Command) {
	c.remote = worker.AddRemoteFlags(c.env, cmd.Flags())
	cmd.Flags().StringSliceVar(&c.allow, "allow", nil, "allow the refused edit of this `name`; repeat for several")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	addTransactionTimeout(c.env, cmd.Flags(), &c.transactionTimeout)
}

// plan makes the plan. Nothing changes before its steps run.
func (c *planner) plan(ctx context.Context) (*plan, error) {
	if err := checkAllow(c.allow); err != nil {
		return nil, err
	}
	w, err := c.remote.Open()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(w.Kafka.Ping(ctx), w.Registry.Ping(ctx)); err != nil {
		return nil, err
	}
	applied, damaged, err := readDeployment(ctx, w)
	if err != nil {
		return nil, err
	}
	p := &plan{Topology: w.Topology.Name, Hash: w.Topology.Hash(), Applied: applied, Steps: []step{}, Notes: []planNote{}, Refused: []refusal{}}
	if damaged != "" {
		p.note(w.Topology.Name, "the last applied topology on %s cannot be read (%s): no edit is compared with it, and apply writes it again", control.Topic(w.Topology), damaged)
	}
	cluster, err := describeDeployed(ctx, w, applied)
	if err != nil {
		return nil, err
	}
	if err := p.topics(ctx, w, cluster); err != nil {
		return nil, err
	}
	for _, pl := range w.Topology.Pipelines {
		if err := chain.CheckHoldTime(pl, c.transactionTimeout); err != nil {
			p.refuse(editDelay, pl.Name, "set the flag for workers and for this command, or let the stages wait less", "pipeline %s: %v", pl.Name, err)
		}
	}
	ids, err := p.schemas(ctx, w)
	if err != nil {
		return nil, err
	}
	if applied != nil {
		if err := p.edits(ctx, w, cluster); err != nil {
			return nil, err
		}
	}
	if len(p.Steps) > 0 || !deploy(w.Topology, cluster, ids).same(applied) {
		text := "the applied topology"
		if applied == nil {
			text += ", for the first time"
		}
		p.Steps = append(p.Steps, step{doRecord, control.Topic(w.Topology), text, func(ctx context.Context) error { return writeDeployment(ctx, c.env, w) }})
	}
	p.allow(c.allow)
	return p, nil
}

// apply carries out the plan, unless an edit is refused.
func (c *planner) apply(ctx context.Context) error {
	p, err := c.plan(ctx)
	if err != nil {
		return err
	}
	if p.refused() {
		if err := c.show(p, true); err != nil {
			return err
		}
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	for i, s := range p.Steps {
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s %s: %w; %d of %d steps are done: run apply again", s.Do, s.Name, err, i, len(p.Steps))
		}
	}
	return c.show(p, true)
}

// show prints a plan. applying is set for apply, after its steps ran.
func (c *planner) show(p *plan, applying bool) error {
	if c.json {
		p.Done = applying && !p.refused()
		return cli.PrintJSON(c.env.Stdout, p)
	}
	return p.print(c.env.Stdout, applying)
}

// print prints a plan as text. See [planner.show] for applying.
func (p *plan) print(w io.Writer, applying bool) error {
	out := cli.Printer{Out: w}
	if p.Applied == nil {
		out.Line("topology %s (%.8s); nothing was applied yet", p.Topology, p.Hash)
	} else {
		out.Line("topology %s (%.8s); last applied: %.8s, %s, by %s", p.Topology, p.Hash, p.Applied.Hash, p.Applied.Time.Format(time.RFC3339), p.Applied.By)
	}
	signs := map[string]string{doCreate: "+", doRegister: "+", doConfig: "~", doRecord: "~"}
	for _, s := range p.Steps {
		out.Line("  %s %s %s: %s", signs[s.Do], s.Do, s.Name, s.Text)
	}
	for _, n := range p.Notes {
		out.Line("  . %s: %s", n.Name, n.Text)
	}
	refused := 0
	for _, r := range p.Refused {
		if r.Allowed {
			out.Line("  ! allowed: %s: %s", r.Name, r.Why)
			continue
		}
		refused++
		out.Line("  ! refused: %s", r.Name)
		out.Prose("      ", r.Why)
		out.Prose("      ", "Do: "+r.Hint+".")
		if r.Allowable {
			out.Line("      Or, if it is intended: --allow %s", r.Name)
		}
	}
	counts := map[string]int{}
	for _, s := range p.Steps {
		counts[s.Do]++
	}
	switch {
	case refused > 0 && applying:
		out.Line("%s refused: nothing was done", cli.Plural(refused, "edit"))
	case refused > 0:
		out.Line("%s refused", cli.Plural(refused, "edit"))
	case len(p.Steps) == 0:
		out.Line("nothing to do")
	default:
		var parts []string
		for _, do := range slices.Sorted(maps.Keys(counts)) {
			parts = append(parts, fmt.Sprintf("%s: %d", do, counts[do]))
		}
		out.Line("%s %s", map[bool]string{true: "done:", false: "to do:"}[applying], strings.Join(parts, ", "))
	}
	return out.Err
}
