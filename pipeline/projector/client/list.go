package client

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
)

func listCommand(e *cli.Env) *cobra.Command {
	cmd, a := newCommand(e, &cobra.Command{
		Use:   "list [NAME]",
		Short: "List projections, or the aggregates of one",
		Long: "Lists a page of the aggregates of a projection, and prints the flag for the next page on\n" +
			"stderr. Without NAME, lists the projections and their progress on all workers.",
		Example: `  projector list
  projector list order --filter "state.status == 'created'" --sort -state.total_amount --limit 10`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("unexpected argument %q", args[1])
			}
			return nil
		},
	}, func(ctx context.Context, a *api, args []string) error {
		if len(args) == 0 {
			return listProjections(ctx, a)
		}
		return listAggregates(ctx, a, args[0])
	})
	e.CompleteProjection(cmd)
	flags := cmd.Flags()
	a.bind(flags, "filter", "filter", "`condition` in CEL over id, version, deleted, event_time and state.FIELD")
	a.bind(flags, "sort", "sort", "sort by a `field`: id, version, event_time or state.FIELD; a - before it sorts in descending order; every field except id is limited to projections of 200,000 aggregates, whatever the filter")
	a.bindPage(flags, "20")
	a.bindFreshness(flags)
	return cmd
}

func listAggregates(ctx context.Context, a *api, name string) error {
	var page struct {
		Items []aggregate `json:"items"`
		Next  string      `json:"next_cursor"`

		Failed  int    `json:"filter_failed"`
		Failure string `json:"filter_failure"`
	}
	if done, err := a.get(ctx, &page, "projections", name); done || err != nil {
		return err
	}
	t := a.table()
	t.empty = "no aggregates"
	marked := slices.ContainsFunc(page.Items, func(g aggregate) bool { return g.mark() != "" })
	for i, g := range page.Items {
		values, err := members(g.State)
		if err != nil {
			return err
		}
		head := []string{"ID", "VERSION", "TIME"}
		row := []string{g.ID, strconv.FormatInt(g.Version, 10), timeText(g.EventTime)}
		if marked {
			head, row = append(head, "STATUS"), append(row, cmp.Or(g.mark(), "live"))
		}
		for _, m := range values {
			if m.name != "id" {
				head = append(head, strings.ToUpper(m.name))
				row = append(row, plainJSON(m.value))
			}
		}
		if i == 0 {
			t.head = head
		}
		t.row(row...)
		t.hide(g.Hidden, g.Plain)
	}
	if page.Failed > 0 {
		t.note("the filter failed for %d of the aggregates, which are left out; the first: %s", page.Failed, page.Failure)
	}
	t.more("cursor", page.Next)
	return t.flush()
}

func listProjections(ctx context.Context, a *api) error {
	a.query = url.Values{}
	var all struct {
		Projections []struct {
			Name       string     `json:"name"`
			Fold       string     `json:"projection_version"` // hash of its definition
			Topic      string     `json:"topic"`
			Snapshots  string     `json:"snapshots"`
			Partitions []position `json:"partitions"`
			Absent     []struct {
				Partition int32  `json:"partition"`
				Detail    string `json:"detail"`
			} `json:"absent"`
		} `json:"projections"`
	}
	if done, err := a.get(ctx, &all, "projections"); done || err != nil {
		return err
	}
	t := a.table("NAME", "FOLD", "EVENTS", "SNAPSHOTS", "PARTITIONS", "OFFSETS", "LAG")
	t.empty = "no projections"
	for _, p := range all.Projections {
		var folded, lag int64
		for _, at := range p.Partitions {
			folded, lag = folded+at.Offset, lag+at.Lag
			if gap := at.gap(); gap != "" {
				t.note("%s, partition %d: %s", p.Name, at.Partition, gap)
			}
		}
		partitions := strconv.Itoa(len(p.Partitions))
		if n := len(p.Absent); n > 0 {
			partitions += " of " + strconv.Itoa(len(p.Partitions)+n)
		}
		for _, gone := range p.Absent {
			t.note("%s, partition %d: %s", p.Name, gone.Partition, gone.Detail)
		}
		t.row(p.Name, p.Fold[:min(8, len(p.Fold))], p.Topic, p.Snapshots, partitions, strconv.FormatInt(folded, 10), strconv.FormatInt(lag, 10))
	}
	return t.flush()
}
