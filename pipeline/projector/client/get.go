package client

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
)

func getCommand(e *cli.Env) *cobra.Command {
	cmd, a := newCommand(e, &cobra.Command{
		Use:   "get NAME ID",
		Short: "Show an aggregate, in its current or a past state",
		Long: "Shows the state of an aggregate of a projection: the current state, or, with one of\n" +
			"the --at flags, a past one.\n\n" +
			"Exit code 1 if there is no such aggregate, or if its state is not fresh enough.",
		Example: `  projector get order o-000001
  projector get order o-000001 --at-version 1
  projector get user u-00001 --at-time 1997-12-31T00:00:00Z
  projector get order o-000001 --after-event f22a92e8-db3d-5065-befb-3887c5b06ebb --wait 2s`,
		Args: named("NAME", "ID"),
	}, get)
	flags := cmd.Flags()
	a.bind(flags, "at-version", "at_version", "show the state at this `version`")
	a.bind(flags, "at-time", "at_time", "show the state at this `time` of the events (RFC 3339)")
	a.bind(flags, "at-recorded-time", "at_recorded_time", "show the state at this `time` of the records (RFC 3339)")
	a.bind(flags, "min-version", "min_version", "lowest acceptable `version`")
	a.bindFreshness(flags)
	return cmd
}

func get(ctx context.Context, a *api, args []string) error {
	var g aggregate
	if done, err := a.get(ctx, &g, "projections", args[0], args[1]); done || err != nil {
		return err
	}
	t := a.table("FIELD", "VALUE")
	values, err := members(g.State)
	if err != nil {
		return err
	}
	for _, m := range values {
		t.row(m.name, plainJSON(m.value))
	}
	mark := g.mark()
	if mark != "" {
		mark = ", " + mark
	}
	t.hide(g.Hidden, g.Plain)
	numbered := ""
	if g.Sequence > 0 {
		numbered = fmt.Sprintf(", sequence %d", g.Sequence)
	}
	t.note("%s %s, version %d%s%s, of %s by event %s", g.Projection, g.ID, g.Version, numbered, mark, timeText(g.EventTime), g.EventID)
	if g.Status == statusBlocked {
		t.note("an event cannot be folded, and those after it wait: `projector blocked %s` has the reason", g.Projection)
	}
	t.note("%s", g.position())
	return t.flush()
}
