// Package client holds the commands of projector that query a running worker over HTTP: get,
// list, history, why, diff-versions, event, events, watch, blocked and release.
//
// Start reading at [Commands]. Each command runs in one goroutine and shares nothing.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/worker"
)

// Commands returns the commands of this package.
func Commands(e *cli.Env) []*cobra.Command {
	return []*cobra.Command{
		getCommand(e), listCommand(e), historyCommand(e), whyCommand(e), diffCommand(e), eventCommand(e), eventsCommand(e), watchCommand(e),
		blockedCommand(e), releaseCommand(e),
	}
}

// api is the HTTP API of a projector, with the flags of a command.
type api struct {
	env     *cli.Env
	address string // host:port or URL
	timeout time.Duration
	json    bool
	query   url.Values // set by flags
	dial    *worker.DialFlags
}

// A run is the function of a command.
type run func(ctx context.Context, a *api, args []string) error

// newCommand adds the common flags and the function to a command.
func newCommand(e *cli.Env, cmd *cobra.Command, do run) (*cobra.Command, *api) {
	a := &api{env: e, query: url.Values{}}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return do(cmd.Context(), a, args) }
	flags := cmd.Flags()
	flags.StringVar(&a.address, "address", worker.ProjectorListen, "`host:port` or URL of a projector")
	flags.DurationVar(&a.timeout, "timeout", 30*time.Second, "how long to wait for the answer")
	flags.BoolVar(&a.json, "json", false, "print the JSON of the answer")
	a.dial = worker.AddDialFlags(e, flags)
	e.BindEnv(flags, "address")
	if strings.Contains(cmd.Use, " NAME") {
		e.CompleteProjection(cmd)
	}
	return cmd, a
}

// named requires exactly these arguments, which its errors name.
func named(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return fmt.Errorf("%s is missing: %s", names[len(args)], cmd.UseLine())
		}
		if len(args) > len(names) {
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// bind adds a flag that sets a query parameter. The worker validates its value.
func (a *api) bind(flags *pflag.FlagSet, flag, parameter, usage string) {
	flags.Var(&parameterFlag{a.query, parameter}, flag, usage)
}

// bindPage adds --limit, with a default, and --cursor.
func (a *api) bindPage(flags *pflag.FlagSet, limit string) {
	a.query.Set("limit", limit)
	a.bind(flags, "limit", "limit", "show at most `n`, up to 1000")
	a.bind(flags, "cursor", "cursor", "continue at the `cursor` that the previous page printed")
}

// bindFreshness adds --after-event and --wait.
func (a *api) bindFreshness(flags *pflag.FlagSet) {
	a.bind(flags, "after-event", "after_event", "`id` of an event that the answer must include")
	a.bind(flags, "wait", "wait", "wait for that event for a `duration`, such as 2s")
}

// parameterFlag is a flag that sets a query parameter.
type parameterFlag struct {
	query url.Values
	name  string
}

func (f *parameterFlag) String() string {
	if f.query == nil {
		return ""
	}
	return f.query.Get(f.name)
}
func (f *parameterFlag) Set(s string) error { f.query.Set(f.name, s); return nil }
func (f *parameterFlag) Type() string       { return "string" }

// url returns the URL of a request.
func (a *api) url(query url.Values, path ...string) (string, error) {
	base := a.address
	if !strings.Contains(base, "://") {
		call, err := a.dial.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			return "", err
		}
		base = call.URL(base, "")
	}
	u, err := url.Parse(base)
	if err != nil || u.Hostname() == "" {
		return "", cli.Usagef("--address: want host:port or a URL, such as %s", worker.ProjectorListen)
	}
	if u.User != nil { // errors repeat the address
		return "", cli.Usagef("--address: a projector knows no user and password; use --token-file or --client-cert")
	}
	for i := range path {
		path[i] = url.PathEscape(path[i])
	}
	text := strings.TrimRight(u.String(), "/") + "/v1/" + strings.Join(path, "/")
	if len(query) > 0 {
		text += "?" + query.Encode()
	}
	return text, nil
}

// client returns a client for one request.
func (a *api) client() (*http.Client, error) {
	call, err := a.dial.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: call.Transport(&http.Transport{DisableKeepAlives: true})}, nil
}

// open sends a request. The caller must close the body of the answer.
func (a *api) open(ctx context.Context, header http.Header, path ...string) (*http.Response, error) {
	at, err := a.url(a.query, path...)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "millrace-projector/"+a.env.Build.Version)
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	switch {
	case err == nil && resp.StatusCode == http.StatusOK:
		return resp, nil
	case err == nil:
		defer resp.Body.Close()
		return nil, a.problem(resp)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no projector answers at %s: start one with 'projector run', or set its address with --address (env MILLRACE_ADDRESS)", a.address)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("the projector at %s did not answer within %s (--timeout)", a.address, a.timeout)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return nil, fmt.Errorf("--address: %w", dns)
	}
	return nil, err
}

// problem returns the error in an answer that does not have status 200.
func (a *api) problem(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	var p struct{ Detail string }
	if json.Unmarshal(text, &p) != nil || p.Detail == "" {
		return fmt.Errorf("%s answers %s, but not as a projector does: is --address right?", a.address, resp.Status)
	}
	if a.json {
		if _, err := a.env.Stdout.Write(text); err != nil {
			return err
		}
	}
	code := cli.ExitFailure
	if resp.StatusCode == http.StatusBadRequest {
		code = cli.ExitUsage
	}
	if resp.StatusCode == http.StatusUnauthorized {
		p.Detail += "; this command has --token-file (or env MILLRACE_TOKEN) and --client-cert for that"
	}
	return &cli.ExitError{Code: code, Err: errors.New(p.Detail)}
}

// get sends a request and decodes the answer into v. With --json, it prints the answer
// instead, and done is true.
func (a *api) get(ctx context.Context, v any, path ...string) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := a.open(ctx, nil, path...)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, fmt.Errorf("reading the answer of %s: %w", a.address, err)
	}
	if a.json {
		var out bytes.Buffer
		if err := json.Indent(&out, body, "", "  "); err != nil {
			return false, err
		}
		_, err = out.WriteTo(a.env.Stdout)
		return true, err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return false, fmt.Errorf("%s sent an answer that this program does not understand: %w", a.address, err)
	}
	return false, nil
}

// post sends a request without a body that changes something, and decodes the answer.
func (a *api) post(ctx context.Context, v any, query url.Values, path ...string) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	at, err := a.url(query, path...)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, at, nil)
	if err != nil {
		return err
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("calling the projector: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a.problem(resp)
	}
	return json.NewDecoder(resp.Body).Decode(v)
}
