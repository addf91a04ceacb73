package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/projector/query"
)

func BlockedCommand(e *cli.Env) *cobra.Command {
	cmd, a := askCommand(e, "blocked NAME", "List the aggregates of a projection that wait for a release",
		`Lists the aggregates that have an event which cannot be folded, or a gap, and how
many later events wait: the one that has waited longest first.`,
		`  projector blocked order`, cobra.ExactArgs(1),
		func(ctx context.Context, a *asker, args []string) error {
			var page struct {
				Items []query.BlockedAggregate `json:"items"`
				Next  string                   `json:"next_cursor"`
			}
			if done, err := a.ask(ctx, &page, "blocked", args[0]); done || err != nil {
				return err
			}
			t := a.table("ID", "PARTITION", "OFFSET", "REASON", "WAITING", "ERROR")
			for _, q := range page.Items {
				t.row(q.ID, strconv.Itoa(int(q.Partition)), strconv.FormatInt(q.Offset, 10), q.Reason, strconv.FormatInt(q.Queued, 10), q.Error)
			}
			if page.Next != "" {
				t.say("there are more: --cursor %s", page.Next)
			}
			return t.flush()
		})
	a.query.Set("limit", "100")
	a.bind(cmd.Flags(), "limit", "limit", "how `many`, at most 1000")
	a.bind(cmd.Flags(), "cursor", "cursor", "`where` to go on, as the page before said")
	return cmd
}

func ReleaseCommand(e *cli.Env) *cobra.Command {
	skip := false
	cmd, _ := askCommand(e, "release NAME ID", "Fold again what a blocked aggregate missed",
		`Reads the log from the event on at which the aggregate was blocked, and folds that
and all that waited; with --skip, it leaves that event out, or passes over the gap.
If an event still cannot be folded, the aggregate is blocked there. What is skipped
is skipped whenever the log is folded again.

Exit code 0 if the aggregate is blocked no longer; 1 if it is.`,
		`  projector release order o-17
  projector release order o-17 --skip`, cobra.ExactArgs(2),
		func(ctx context.Context, a *asker, args []string) error {
			var out query.Released
			if err := a.post(ctx, &out, skip, "blocked", args[0], args[1], "release"); err != nil {
				return err
			}
			fmt.Fprintf(e.Stdout, "%s of %s folded again\n", cli.Plural(out.Events, "event"), args[1])
			if out.Blocked != nil {
				return fmt.Errorf("%s is blocked at offset %d: %s", args[1], out.Blocked.Offset, out.Blocked.Error)
			}
			return nil
		})
	cmd.Flags().BoolVar(&skip, "skip", false, "leave out the event at which it was blocked")
	return cmd
}

// post asks for something to be done.
func (a *asker) post(ctx context.Context, into any, skip bool, path ...string) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	at, err := a.url(nil, path...)
	if err != nil {
		return err
	}
	if skip {
		at += "?skip=true"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, at, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("asking the projector: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a.problem(resp)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
