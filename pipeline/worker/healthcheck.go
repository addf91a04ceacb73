package worker

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
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
			if flags.probes != "" {
				flags.Listen, flags.ListenFile = flags.probes, ""
			}
			addr, err := flags.DialAddress()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if flags.tls.Certificate == "" {
				return checkHealth(ctx, nil, "http://"+addr+path)
			}
			own, err := ownServer(flags.tls.Certificate)
			if err != nil {
				return err
			}
			return checkHealth(ctx, own, "https://"+addr+path)
		},
	}
	flags = &ServerFlags{Env: e}
	cmd.Flags().StringVar(&flags.Listen, "listen", listen, "the worker's `host:port`")
	cmd.Flags().StringVar(&flags.ListenFile, "listen-file", "", "`file` with the worker's address")
	cmd.Flags().StringVar(&flags.probes, "probe-listen", "", "the worker's `host:port` for health and metrics, if it has one")
	cmd.Flags().StringVar(&flags.tls.Certificate, "tls-cert", "", "PEM `file` with the certificate of the worker, if it uses TLS")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	cmd.Flags().StringVar(&path, "path", "/readyz", "`path` of the check: /readyz, /startupz or /livez")
	e.BindEnv(cmd.Flags(), "listen", "listen-file", "probe-listen", "tls-cert")
	return cmd
}

// ownServer returns the client side of TLS for the program's own server, which must have the
// certificate in the file. Its name is not compared: the check calls the loopback address.
func ownServer(certificate string) (*tls.Config, error) {
	text, err := os.ReadFile(certificate)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("--tls-cert: %s has no certificate in PEM", certificate)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection compares the certificate
		VerifyConnection: func(s tls.ConnectionState) error {
			if !bytes.Equal(s.PeerCertificates[0].Raw, block.Bytes) {
				return fmt.Errorf("the server has another certificate than %s", certificate)
			}
			return nil
		},
	}, nil
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

// checkHealth returns an error unless the answer has status 200. secure is nil without TLS.
func checkHealth(ctx context.Context, secure *tls.Config, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: secure}} // no proxy either
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
