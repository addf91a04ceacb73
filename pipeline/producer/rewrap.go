package producer

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
)

// rewrapper holds the flags of the command rewrap.
type rewrapper struct {
	env      *cli.Env
	kafka    *cli.KafkaFlags
	topology *cli.TopologyFlags
	log      *cli.LogFlags
	kek      *keyring.Flags

	retire         string
	dryRun, asJSON bool
}

func rewrapCommand(e *cli.Env) *cobra.Command {
	r := &rewrapper{env: e}
	cmd := &cobra.Command{
		Use:   "rewrap",
		Short: "Wrap the keys of data subjects by the newest key-encryption key",
		Long: `Wraps each key on the key topic by the newest key-encryption key, the last one of
the file. The earlier ones still wrap it, too, so programs that do not have the
newest one continue. --retire ID then removes what that key-encryption key has
wrapped, once all programs have the newest one.

The data is not encrypted again: the keys of the subjects stay the same.

After an interruption, run the command again: it does the rest. A program that
still has an earlier key-encryption key as its newest one wraps new keys by that.
So run --retire again when all programs were restarted, and delete a
key-encryption key only when it wraps no key any more.

Exit code 0 if the newest key-encryption key wraps every key, and with --retire, if
the retired one wraps none; 1 if keys are left, which are listed, or Kafka failed.`,
		Example: `  producer rewrap --kek-file kek --dry-run
  producer rewrap --kek-file kek
  producer rewrap --kek-file kek --retire 2025-11`,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.run(cmd.Context()) },
	}
	flags := cmd.Flags()
	r.kafka = e.KafkaFlags(flags, "producer")
	r.topology = e.TopologyFlags(flags)
	r.log = e.LogFlags(flags)
	r.kek = keyring.AddFlags(e, flags)
	flags.StringVar(&r.retire, "retire", "", "`id` of a key-encryption key that must no longer wrap a key")
	flags.BoolVar(&r.dryRun, "dry-run", false, "count the keys by their key-encryption keys, and change nothing")
	flags.BoolVar(&r.asJSON, "json", false, "print the result as JSON on stdout")
	return cmd
}

func (r *rewrapper) run(ctx context.Context) error {
	log, err := r.log.Logger()
	if err != nil {
		return err
	}
	t, err := r.topology.Load(r.env)
	if err != nil {
		return err
	}
	keys := keyring.Topic(t)
	if keys == nil {
		return cli.Usagef("%s configures no encryption", r.topology.File)
	}
	keks, err := r.kek.Load(ctx, log)
	switch {
	case err != nil:
		return err
	case keks == nil:
		return cli.Usagef("name the key-encryption keys with --kek-file, or set %s", keyring.EnvKEK)
	case r.retire == keks.Newest():
		return cli.Usagef("--retire %s: it is the newest key-encryption key; append another one to the file first", r.retire)
	}
	cfg, err := r.kafka.Config(log, nil)
	if err != nil {
		return err
	}
	cfg.Patience = kafka.CommandPatience
	cluster, err := kafka.Describe(ctx, cfg, []string{keys.Name}, nil, nil)
	if err == nil {
		err = cluster.Hidden[keys.Name]
	}
	if err != nil {
		return err
	}
	partitions := cluster.Topics[keys.Name].Partitions
	if partitions == 0 {
		return fmt.Errorf("the key topic %s does not exist: nothing was encrypted yet", keys.Name)
	}
	out, err := kafka.NewWriter(cfg)
	if err != nil {
		return err
	}
	defer out.Close()
	x := &keyring.Rewrapping{
		KEKs: keks, Retire: r.retire, DryRun: r.dryRun, Topic: keys.Name, Now: r.env.Now,
		Read: func(ctx context.Context, partition int32, f func(*pipeline.Record) error) error {
			_, err := kafka.ReadSettled(ctx, cfg, keys.Name, partition, f)
			return err
		},
	}
	result, err := x.Run(ctx, out, partitions)
	if err != nil {
		return err
	}
	return r.report(result, keks.Newest())
}

// report prints the result, and fails if something is left.
func (r *rewrapper) report(result keyring.Rewrapped, newest string) (err error) {
	if r.asJSON {
		err = cli.PrintJSON(r.env.Stdout, result)
	} else {
		p := cli.Printer{Out: r.env.Stdout}
		would := ""
		if r.dryRun {
			would = "would be "
		}
		p.Line("%srewrapped: %d of %s", would, result.Changed, cli.Plural(result.Keys, "key"))
		for _, id := range slices.Sorted(maps.Keys(result.By)) {
			p.Line("  %s wraps %d, of which no other wraps %d", id, result.By[id], result.Only[id])
		}
		if result.Destroyed > 0 {
			p.Line("%sdestroyed: %s of forgotten subjects", would, cli.Plural(result.Destroyed, "key"))
		}
		for _, l := range result.Left {
			p.Line("  ! left: the subject %q: %s", l.Subject, l.Reason)
		}
		err = p.Err
	}
	if err == nil && !r.dryRun && (len(result.Left) > 0 || result.By[newest] < result.Keys || result.By[r.retire] > 0) {
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return err
}
