package client

import (
	"context"
	"fmt"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/projector/query"
)

func blockedCommand(e *cli.Env) *cobra.Command {
	cmd, a := newCommand(e, &cobra.Command{
		Use:   "blocked NAME",
		Short: "List the blocked aggregates of a projection",
		Long: `Lists the aggregates with an event that cannot be folded, or with a gap, and the
number of later events that wait. The aggregate that has waited longest comes first.
'projector release' folds them again.`,
		Example: `  projector blocked order`,
		Args:    cobra.ExactArgs(1),
	}, listBlocked)
	a.bindPage(cmd.Flags(), "100")
	return cmd
}

func listBlocked(ctx context.Context, a *api, args []string) error {
	var page struct {
		Items []query.BlockedAggregate `json:"items"`
		Next  string                   `json:"next_cursor"`
	}
	if done, err := a.get(ctx, &page, "blocked", args[0]); done || err != nil {
		return err
	}
	t := a.table("ID", "PARTITION", "OFFSET", "REASON", "WAITING", "ERROR")
	t.empty = "no blocked aggregates"
	for _, q := range page.Items {
		t.row(q.ID, strconv.Itoa(int(q.Partition)), strconv.FormatInt(q.Offset, 10), q.Reason, strconv.FormatInt(q.Queued, 10), q.Error)
	}
	t.more("cursor", page.Next)
	return t.flush()
}

func releaseCommand(e *cli.Env) *cobra.Command {
	skip := false
	cmd, _ := newCommand(e, &cobra.Command{
		Use:   "release NAME ID",
		Short: "Fold the events that a blocked aggregate missed",
		Long: `Reads the log from the event that blocked the aggregate, and folds that event and
all later ones. With --skip, it skips that event, or the gap. If another event cannot
be folded, it blocks the aggregate again. A skipped event is also skipped whenever the
log is folded again.

Exit code 0 if the aggregate is not blocked any more; 1 if it is.`,
		Example: `  projector release order o-17
  projector release order o-17 --skip`,
		Args: cobra.ExactArgs(2),
	}, func(ctx context.Context, a *api, args []string) error {
		values := url.Values{}
		if skip {
			values.Set("skip", "true")
		}
		var out query.ReleaseResult
		if err := a.post(ctx, &out, values, "blocked", args[0], args[1], "release"); err != nil {
			return err
		}
		if q := out.Blocked; q != nil {
			if out.Events > 0 {
				fmt.Fprintf(e.Stdout, "%s of %s folded again\n", cli.Plural(out.Events, "event"), args[1])
			}
			return fmt.Errorf("%s is blocked again at offset %d, with %s waiting (%s): %s", args[1], q.Offset, cli.Plural(int(q.Queued), "event"), q.Reason, q.Error)
		}
		fmt.Fprintf(e.Stdout, "%s of %s folded again\n", cli.Plural(out.Events, "event"), args[1])
		return nil
	})
	cmd.Flags().BoolVar(&skip, "skip", false, "skip the event or the gap that blocked the aggregate")
	return cmd
}
