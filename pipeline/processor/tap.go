package processor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/server/dial"
	"millrace/pipeline/worker"
)

// TapCommand returns `processor tap`.
func TapCommand(e *cli.Env) *cobra.Command {
	t := &tapper{env: e, server: &worker.ServerFlags{Env: e}}
	cmd := &cobra.Command{
		Use:   "tap",
		Short: "Show events before and after each stage of a running worker",
		Long: `Connects to a worker that runs with --tap and shows events while it handles them:
the input, the changes of each stage, and the outcome. It shows a sample: at most
--rate events per second, each with all of its stages. Lines that a slow terminal does
not read in time are dropped and counted.

A worker shows the events of its own partitions. It shows the events of an aborted
batch again.`,
		Example: `  processor tap
  processor tap --stage stamp --key user-1 --limit 5
  curl -N '127.0.0.1:9101/v1/tap?type=OrderCreated&rate=1'`,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&t.server.Listen, "listen", worker.ProcessorListen, "the worker's `host:port`")
	flags.StringVar(&t.server.ListenFile, "listen-file", "", "`file` with the address of the worker")
	flags.StringSliceVar(&t.pipelines, "pipeline", nil, "show only these `pipelines`")
	flags.StringSliceVar(&t.stages, "stage", nil, "show only these `stages`; decode is before the first stage, encode after the last one")
	flags.StringSliceVar(&t.types, "type", nil, "show only events of these `types`")
	flags.StringVar(&t.key, "key", "", "show only events with this `key`")
	flags.StringSliceVar(&t.mask, "mask", nil, "hide these fields, by `path` or name; key hides the key, * all values")
	flags.Float64Var(&t.rate, "rate", chain.TapRate, "show at most `n` events per second")
	flags.IntVarP(&t.limit, "limit", "n", 0, "stop after `n` events")
	flags.BoolVar(&t.json, "json", false, "print the lines of the worker unchanged, as JSON")
	t.dial = worker.AddDialFlags(e, flags)
	e.BindEnv(flags, "listen", "listen-file")
	t.keyed = func() bool { return flags.Changed("key") } // an empty key is a filter too
	return cmd
}

// tapper is the command tap.
type tapper struct {
	env                            *cli.Env
	server                         *worker.ServerFlags
	dial                           *worker.DialFlags
	pipelines, stages, types, mask []string
	key                            string
	keyed                          func() bool
	rate                           float64
	limit                          int
	json                           bool
}

func (t *tapper) run(ctx context.Context) error {
	addr, err := t.server.DialAddress()
	if err != nil {
		return err
	}
	call, err := t.dial.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	q := url.Values{"rate": {strconv.FormatFloat(t.rate, 'g', -1, 64)}, "limit": {strconv.Itoa(t.limit)}}
	for name, values := range map[string][]string{"pipeline": t.pipelines, "stage": t.stages, "type": t.types, "mask": t.mask} {
		if len(values) > 0 {
			q[name] = values
		}
	}
	if t.keyed() {
		q.Set("key", t.key)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, call.URL(addr, chain.TapPath)+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: call.Transport(&http.Transport{DisableKeepAlives: true})}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w; check that a worker runs there", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fmt.Errorf("the worker at %s does not show events: run it with --tap", addr)
	default:
		return fmt.Errorf("the worker at %s: %s", addr, dial.Detail(resp))
	}
	return t.print(ctx, resp.Body, addr)
}

// print prints the lines of the worker until they end.
func (t *tapper) print(ctx context.Context, body io.Reader, addr string) error {
	view := tapView{out: cli.Printer{Out: t.env.Stdout}, color: t.env.Colors()}
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadBytes('\n')
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return view.out.Err // interrupted, or the worker ended the stream
		case err != nil:
			return fmt.Errorf("the worker at %s: %w", addr, err)
		case len(bytes.TrimSpace(line)) == 0:
			continue
		case t.json:
			view.out.Line("%s", bytes.TrimSpace(line))
		default:
			var l trace.Line
			if err := json.Unmarshal(line, &l); err != nil {
				return fmt.Errorf("the worker at %s sent an invalid line: %w", addr, err)
			}
			view.show(l)
		}
		if view.out.Err != nil {
			return view.out.Err
		}
	}
}
