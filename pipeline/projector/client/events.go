package client

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
)

func eventCommand(e *cli.Env) *cobra.Command {
	cmd, _ := newCommand(e, &cobra.Command{
		Use:     "event ID",
		Short:   "Show an event, and the aggregates that it changed",
		Example: `  projector event f22a92e8-db3d-5065-befb-3887c5b06ebb`,
		Args:    named("ID"),
	}, showEvent)
	return cmd
}

func showEvent(ctx context.Context, a *api, args []string) error {
	var found struct {
		Applied []event `json:"applied"` // never empty
	}
	if done, err := a.get(ctx, &found, "events", args[0]); done || err != nil {
		return err
	}
	t := a.table("PROJECTION", "AGGREGATE", "VERSION", "TIME", "TYPE", "TOPIC", "PARTITION", "OFFSET")
	for _, ev := range found.Applied {
		t.row(ev.Projection, ev.Aggregate, strconv.FormatInt(ev.Version, 10), timeText(ev.Time), ev.Type, ev.Topic, strconv.Itoa(int(ev.Partition)), strconv.FormatInt(ev.Offset, 10))
		t.hide(ev.Hidden, ev.Plain)
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.env.Stdout, "\n%s\n", found.Applied[0].Event)
	return err
}

func eventsCommand(e *cli.Env) *cobra.Command {
	cmd, a := newCommand(e, &cobra.Command{
		Use:     "events TYPE",
		Short:   "List the events of a type, the latest first",
		Example: `  projector events OrderPaid --limit 5`,
		Args:    named("TYPE"),
	}, listEvents)
	a.bindPage(cmd.Flags(), "20")
	return cmd
}

func listEvents(ctx context.Context, a *api, args []string) error {
	a.query.Set("type", args[0])
	var page struct {
		Items []event `json:"items"`
		Next  string  `json:"next_cursor"`
	}
	if done, err := a.get(ctx, &page, "events"); done || err != nil {
		return err
	}
	t := a.table("TIME", "AGGREGATE", "VERSION", "EVENT", "PARTITION", "OFFSET", "DATA")
	t.empty = "no events"
	for _, ev := range page.Items {
		t.row(timeText(ev.Time), ev.Aggregate, strconv.FormatInt(ev.Version, 10), ev.ID, strconv.Itoa(int(ev.Partition)), strconv.FormatInt(ev.Offset, 10), ev.data())
		t.hide(ev.Hidden, ev.Plain)
	}
	t.more("cursor", page.Next)
	return t.flush()
}
