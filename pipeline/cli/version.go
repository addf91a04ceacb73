package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the linker for a release:
//
//	go build -ldflags "-X millrace/pipeline/cli.version=v1.2.3"
var version string

// Build describes the build of a program.
type Build struct {
	Version  string `json:"version"`          // of the release, or "devel"
	Commit   string `json:"commit,omitempty"` // of the source, with "+dirty" if it had changes
	Time     string `json:"time,omitempty"`   // of the commit, RFC 3339
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// ReadBuild returns the Build of this binary.
func ReadBuild() Build {
	b := Build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if b.Version == "" {
		b.Version = strings.Trim(info.Main.Version, "()")
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	setting := func(key string) string {
		i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == key })
		if i < 0 {
			return ""
		}
		return info.Settings[i].Value
	}
	b.Commit = setting("vcs.revision")
	if b.Commit != "" && setting("vcs.modified") == "true" {
		b.Commit += "+dirty"
	}
	b.Time = setting("vcs.time")
	return b
}

// line returns the build on one line, after the name of the program.
func (b Build) line(program string) string {
	commit := b.Commit
	if len(commit) > 12 {
		commit = strings.TrimSpace(commit[:12] + strings.Repeat("+dirty", strings.Count(commit, "+dirty")))
	}
	return strings.Join(slices.DeleteFunc(
		[]string{program, b.Version, commit, b.Go, b.Platform},
		func(s string) bool { return s == "" }), " ")
}

// addVersion adds the command version and the flag --version.
func (e *Env) addVersion(root *cobra.Command) {
	root.AddCommand(e.versionCommand())
	root.Version = e.Build.line(root.Name())
	root.SetVersionTemplate("{{.Version}}\n")
	root.Flags().Bool("version", false, "show the version, as the command version does") // cobra's own would take -v
}

func (e *Env) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version and the build",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				enc := json.NewEncoder(e.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(e.Build)
			}
			_, err := fmt.Fprintln(e.Stdout, e.Build.line(cmd.Root().Name()))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
