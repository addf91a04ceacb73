package client

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
)

func historyCommand(e *cli.Env) *cobra.Command {
	cmd, a := newCommand(e, &cobra.Command{
		Use:     "history NAME ID",
		Short:   "Show the events of an aggregate, the latest first",
		Example: `  projector history order o-000001`,
		Args:    named("NAME", "ID"),
	}, history)
	a.query.Set("limit", "20")
	a.bind(cmd.Flags(), "limit", "limit", "show at most `n` events, up to 1000")
	a.bind(cmd.Flags(), "before", "before", "show only events before this `version`")
	return cmd
}

func history(ctx context.Context, a *api, args []string) error {
	var page struct {
		Items  []event `json:"items"`
		Before int64   `json:"next_before"`
	}
	if done, err := a.get(ctx, &page, "projections", args[0], args[1], "history"); done || err != nil {
		return err
	}
	t := a.table("VERSION", "TIME", "TYPE", "EVENT", "PARTITION", "OFFSET", "DATA")
	t.empty = "no events"
	for _, ev := range page.Items {
		t.row(strconv.FormatInt(ev.Version, 10), timeText(ev.Time), ev.Type, ev.ID, strconv.Itoa(int(ev.Partition)), strconv.FormatInt(ev.Offset, 10), ev.data())
		t.hide(ev.Hidden, ev.Plain)
	}
	if page.Before > 0 {
		t.more("before", strconv.FormatInt(page.Before, 10))
	}
	return t.flush()
}

func whyCommand(e *cli.Env) *cobra.Command {
	cmd, _ := newCommand(e, &cobra.Command{
		Use:     "why NAME ID",
		Short:   "Show which event last changed each field of an aggregate",
		Example: `  projector why order o-000001`,
		Args:    named("NAME", "ID"),
	}, why)
	return cmd
}

// origins are the parts of an answer to why that are not those of an [aggregate].
type origins struct {
	Fields  map[string]event `json:"fields"`         // the event that last changed a field, by path
	Unknown []string         `json:"unknown"`        // fields that changed before the history begins
	Before  int64            `json:"unknown_before"` // the first version in the history
}

// row returns the cells of a field.
func (o *origins) row(m jsonMember) []string {
	ev, known := o.Fields[m.name]
	switch {
	case known:
		return []string{m.name, plainJSON(m.value), strconv.FormatInt(ev.Version, 10), timeText(ev.Time), ev.Type, ev.ID}
	case slices.Contains(o.Unknown, m.name):
		return []string{m.name, plainJSON(m.value), "-", "", fmt.Sprintf("before version %d", o.Before), ""}
	}
	return []string{m.name, plainJSON(m.value), "-", "", "never changed", ""}
}

func why(ctx context.Context, a *api, args []string) error {
	var answer json.RawMessage
	if done, err := a.get(ctx, &answer, "projections", args[0], args[1], "why"); done || err != nil {
		return err
	}
	var g aggregate
	var o origins
	for _, v := range []any{&g, &o} {
		if err := json.Unmarshal(answer, v); err != nil {
			return err
		}
	}
	leaves, err := leavesOf(g.State, "", func(path string) bool { _, ok := o.Fields[path]; return ok })
	if err != nil {
		return err
	}
	t := a.table("FIELD", "VALUE", "VERSION", "TIME", "TYPE", "EVENT")
	for _, m := range leaves {
		t.row(o.row(m)...)
	}
	t.hide(g.Hidden, g.Plain)
	t.note("%s %s, version %d; %s", g.Projection, g.ID, g.Version, g.position())
	return t.flush()
}

func diffCommand(e *cli.Env) *cobra.Command {
	cmd, a := newCommand(e, &cobra.Command{
		Use:   "diff-versions NAME ID",
		Short: "Show the difference between two versions of an aggregate",
		Long: "Shows the fields that differ between two versions of an aggregate. Without flags, shows the\n" +
			"change by its last event. ('projector diff' compares two versions of a projection.)",
		Example: `  projector diff-versions order o-000001
  projector diff-versions order o-000001 --from 0 --to 2`,
		Args: named("NAME", "ID"),
	}, diff)
	a.bind(cmd.Flags(), "from", "from", "the older `version`; 0 is before the first event (default: the version before --to)")
	a.bind(cmd.Flags(), "to", "to", "the newer `version` (default: the latest)")
	return cmd
}

func diff(ctx context.Context, a *api, args []string) error {
	type side struct {
		Version int64         `json:"version"`
		EventID string        `json:"event_id"`
		Time    pipeline.Time `json:"event_time"`
	}
	var d struct {
		From   side `json:"from"`
		To     side `json:"to"`
		Fields map[string]struct {
			From json.RawMessage `json:"from"`
			To   json.RawMessage `json:"to"`
		} `json:"fields"`
	}
	if done, err := a.get(ctx, &d, "projections", args[0], args[1], "diff"); done || err != nil {
		return err
	}
	t := a.table("FIELD", fmt.Sprintf("VERSION %d", d.From.Version), fmt.Sprintf("VERSION %d", d.To.Version))
	t.empty = fmt.Sprintf("no field differs between versions %d and %d", d.From.Version, d.To.Version)
	for _, path := range slices.Sorted(maps.Keys(d.Fields)) {
		t.row(path, plainJSON(d.Fields[path].From), plainJSON(d.Fields[path].To))
	}
	t.note("version %d of %s by event %s", d.To.Version, timeText(d.To.Time), d.To.EventID)
	return t.flush()
}
