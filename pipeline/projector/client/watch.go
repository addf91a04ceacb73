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

// watchAgain is how long to wait before a feed that ended is followed again.
const watchAgain = time.Second

func askWatch(e *cli.Env) *cobra.Command {
	var count int
	cmd, a := askCommand(e, "watch NAME [ID]", "Show aggregates as they change",
		"Shows each change of a projection, or of one aggregate, when its snapshot is committed.\nIf the worker goes away, it waits for it and goes on where it was. Ctrl-C ends it.",
		"  projector watch order\n  projector watch order --filter \"state.status == 'paid'\" --json",
		func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return named("NAME")(cmd, args)
		},
		func(ctx context.Context, a *asker, args []string) error {
			if len(args) == 2 {
				a.query.Set("id", args[1])
			}
			w := watcher{asker: a, left: count}
			return w.run(ctx, args[0])
		})
	a.bind(cmd.Flags(), "filter", "filter", "`condition` in CEL over id, version, deleted, event_time and state.FIELD")
	a.bind(cmd.Flags(), "from", "from", "`now`, or beginning: all aggregates first")
	cmd.Flags().IntVarP(&count, "limit", "n", 0, "end after so many `changes`")
	return cmd
}

// watcher follows a feed, again and again.
type watcher struct {
	*asker
	left int    // changes to show; 0 is no limit
	last string // id of the last message that had one
	told string // of what is stalled
}

// errWatched ends a feed that was followed as far as was asked for.
var errWatched = errors.New("enough")

func (w *watcher) run(ctx context.Context, name string) error {
	for first := true; ; first = false {
		err := w.follow(ctx, name)
		switch {
		case errors.Is(err, errWatched), ctx.Err() != nil:
			return nil
		case first && w.last == "":
			return err // it never worked
		}
		fmt.Fprintf(w.env.Stderr, "%v; trying again\n", err)
		t := time.NewTimer(watchAgain)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// follow reads the feed until it ends, and returns why.
func (w *watcher) follow(ctx context.Context, name string) error {
	header := http.Header{}
	if w.last != "" {
		header.Set("Last-Event-ID", w.last)
	}
	resp, err := w.open(ctx, header, "projections", name, "feed")
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
				return errWatched
			}
			if event == "snapshot" && w.left > 1 {
				w.left--
			}
		case "":
			event, id = "", ""
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("the feed of %s breaks off: %w", w.address, err)
	}
	return fmt.Errorf("the feed of %s ended", w.address)
}

// show prints one message.
func (w *watcher) show(event string, data []byte) error {
	switch event {
	case "snapshot":
		if w.json {
			_, err := fmt.Fprintf(w.env.Stdout, "%s\n", data)
			return err
		}
		var g askedAggregate
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
		if g.Deleted {
			state = append(state, "(deleted)")
		}
		t := w.table()
		t.rows = nil
		line := cli.Cell(fmt.Sprintf("%s  %s@%d  %s", stamp(g.EventTime), g.ID, g.Version, strings.Join(state, " ")), widestCell)
		if t.width > 0 {
			line = shorten(line, t.width)
		}
		_, err = fmt.Fprintln(w.env.Stdout, line)
		return err
	case "stalled", "frontier":
		return w.stall(event, data)
	case "end":
		var end struct{ Detail string }
		if err := json.Unmarshal(data, &end); err != nil {
			return err
		}
		return errors.New(end.Detail)
	}
	return nil
}

// frontierPart is what is read of a frontier, or of what is stalled.
type frontierPart struct {
	Partitions []struct {
		Partition int32  `json:"partition"`
		Detail    string `json:"detail"`
	} `json:"partitions"`
}

// stall says of which partitions nothing comes, unless that was said before and
// none of them has come back since.
func (w *watcher) stall(event string, data []byte) error {
	var now frontierPart
	if err := json.Unmarshal(data, &now); err != nil {
		return err
	}
	var text strings.Builder
	for _, p := range now.Partitions {
		line := fmt.Sprintf("nothing comes from partition %d: ", p.Partition)
		if event == "frontier" && strings.Contains(w.told, line) {
			w.told = ""
		}
		fmt.Fprintf(&text, "%s%s\n", line, p.Detail)
	}
	if event == "frontier" || text.String() == w.told {
		return nil
	}
	w.told = text.String()
	_, err := fmt.Fprint(w.env.Stderr, w.told)
	return err
}
