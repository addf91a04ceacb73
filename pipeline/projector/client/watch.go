package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
)

// watchRetry is the delay before a new connection to a feed that ended.
const watchRetry = time.Second

func watchCommand(e *cli.Env) *cobra.Command {
	var count int
	cmd, a := newCommand(e, &cobra.Command{
		Use:   "watch NAME [ID]",
		Short: "Show the changes of aggregates as they happen",
		Long: "Shows each change of a projection, or of one aggregate, when its snapshot is committed.\n" +
			"When the worker stops answering, it retries and continues where it was. Ctrl-C ends it.",
		Example: `  projector watch order
  projector watch order --filter "state.status == 'paid'" --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return named("NAME")(cmd, args)
		},
	}, func(ctx context.Context, a *api, args []string) error {
		if len(args) == 2 {
			a.query.Set("id", args[1])
		}
		w := watcher{api: a, left: count}
		return w.run(ctx, args[0])
	})
	a.bind(cmd.Flags(), "filter", "filter", "`condition` in CEL over id, version, deleted, event_time and state.FIELD")
	a.bind(cmd.Flags(), "from", "from", "`start` of the feed: now (the default), or beginning, which shows all aggregates first")
	cmd.Flags().IntVarP(&count, "limit", "n", 0, "end after `n` changes")
	return cmd
}

// watcher follows a feed, and connects again when it ends.
type watcher struct {
	api     *api
	left    int    // changes left to show; 0 means no limit
	last    string // id of the last message that had one
	stalled string // the printed lines about stalled partitions
}

// errEnough ends a feed after the last change of --limit.
var errEnough = errors.New("enough")

func (w *watcher) run(ctx context.Context, name string) error {
	var exit *cli.ExitError
	for first := true; ; first = false {
		err := w.follow(ctx, name)
		switch {
		case errors.Is(err, errEnough), ctx.Err() != nil:
			return nil
		case first && w.last == "":
			return err // it never worked
		case errors.As(err, &exit) && exit.Code == cli.ExitUsage:
			return err // a new version of the projection refuses the filter: a retry does not help
		}
		fmt.Fprintf(w.api.env.Stderr, "%v; retrying\n", err)
		t := time.NewTimer(watchRetry)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// follow reads the feed until it ends, and returns the reason.
func (w *watcher) follow(ctx context.Context, name string) error {
	header := http.Header{}
	if w.last != "" {
		header.Set("Last-Event-ID", w.last)
	}
	resp, err := w.api.open(ctx, header, "projections", name, "feed")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	var event, id string
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			event = value
		case "id":
			id = value
		case "data":
			if err := w.show(event, []byte(value)); err != nil {
				return err
			}
			if id != "" {
				w.last = id
			}
			if event == "snapshot" && w.left == 1 {
				return errEnough
			}
			if event == "snapshot" && w.left > 1 {
				w.left--
			}
		case "":
			event, id = "", ""
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the feed of %s: %w", w.api.address, err)
	}
	return fmt.Errorf("the feed of %s ended", w.api.address)
}

// show prints one message.
func (w *watcher) show(event string, data []byte) error {
	switch event {
	case "snapshot":
		return w.showSnapshot(data)
	case "stalled", "frontier":
		return w.showStalled(event, data)
	case "end":
		var end struct{ Detail string }
		if err := json.Unmarshal(data, &end); err != nil {
			return err
		}
		return errors.New(end.Detail)
	}
	return nil
}

func (w *watcher) showSnapshot(data []byte) error {
	out := w.api.env.Stdout
	if w.api.json {
		_, err := fmt.Fprintf(out, "%s\n", data)
		return err
	}
	var g aggregate
	if err := json.Unmarshal(data, &g); err != nil {
		return err
	}
	values, err := members(g.State)
	if err != nil {
		return err
	}
	var state []string
	for _, m := range values {
		if m.name != "id" {
			state = append(state, m.name+"="+plainJSON(m.value))
		}
	}
	if mark := g.mark(); mark != "" {
		state = append(state, "("+mark+")")
	}
	line := cli.Cell(fmt.Sprintf("%s  %s@%d  %s", timeText(g.EventTime), g.ID, g.Version, strings.Join(state, " ")), maxCell)
	if width := w.api.table().width; width > 0 {
		line = shorten(line, width)
	}
	_, err = fmt.Fprintln(out, line)
	return err
}

// showStalled prints the partitions that deliver nothing. It does not repeat the lines of
// the last such message unless one of those partitions has delivered since.
func (w *watcher) showStalled(event string, data []byte) error {
	var now struct {
		Partitions []struct {
			Partition int32  `json:"partition"`
			Detail    string `json:"detail"`
		} `json:"partitions"`
	}
	if err := json.Unmarshal(data, &now); err != nil {
		return err
	}
	var text strings.Builder
	for _, p := range now.Partitions {
		line := fmt.Sprintf("nothing comes from partition %d: ", p.Partition)
		if event == "frontier" && strings.Contains(w.stalled, line) {
			w.stalled = ""
		}
		fmt.Fprintf(&text, "%s%s\n", line, p.Detail)
	}
	if event == "frontier" || text.String() == w.stalled {
		return nil
	}
	w.stalled = text.String()
	_, err := fmt.Fprint(w.api.env.Stderr, w.stalled)
	return err
}
