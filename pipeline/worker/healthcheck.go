package worker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
)

// HealthcheckCommand returns a command that requests the program's own /readyz, for
// containers without a shell and curl. listen is the program's default of --listen.
func HealthcheckCommand(e *cli.Env, listen string) *cobra.Command {
	var timeout time.Duration
	var path string
	var flags *ServerFlags
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Check whether a running worker is ready",
		Long: "Checks whether the worker at the address of --listen, or at the address in\n" +
			"--listen-file, is ready. Exit code 0 if it is, else 1 with the reasons.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := flags.DialAddress()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return checkHealth(ctx, "http://"+addr+path)
		},
	}
	flags = &ServerFlags{Env: e}
	cmd.Flags().StringVar(&flags.Listen, "listen", listen, "the worker's `host:port`")
	cmd.Flags().StringVar(&flags.ListenFile, "listen-file", "", "`file` with the worker's address")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	cmd.Flags().StringVar(&path, "path", "/readyz", "`path` of the check: /readyz, /startupz or /livez")
	e.BindEnv(cmd.Flags(), "listen", "listen-file")
	return cmd
}

// DialAddress returns the address at which this host reaches the server of these flags, as
// host:port. For a server that listens on all addresses, it is the loopback address.
func (f *ServerFlags) DialAddress() (string, error) {
	addr := f.Listen
	if f.ListenFile != "" {
		data, err := os.ReadFile(f.ListenFile)
		if err != nil {
			return "", fmt.Errorf("--listen-file: %w; is the worker running?", err)
		}
		addr = string(bytes.TrimSpace(data))
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", cli.Usagef("--listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port), nil
}

// checkHealth returns an error unless the answer has status 200.
func checkHealth(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy either
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s\n%s", url, resp.Status, bytes.TrimSpace(body))
	}
	return nil
}
