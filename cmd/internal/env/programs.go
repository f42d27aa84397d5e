package env

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/wecom-bridge/wecom-bridge/internal/gateway"
	"github.com/wecom-bridge/wecom-bridge/internal/worker"
)

// ReadGateway reads the gateway's configuration and reports every mistake in it.
func ReadGateway() (gateway.Config, error) {
	var cfg gateway.Config
	err := Read(Prefix, &cfg)
	appErr := Apps(cfg.Apps, func(name string, app gateway.App) {
		app.Name = name
		cfg.App = append(cfg.App, app)
	})
	return cfg, mistakes(err, appErr, cfg.Validate())
}

// ReadWorker reads the worker's configuration and reports every mistake in it.
func ReadWorker() (worker.Config, error) {
	var cfg worker.Config
	err := Read(Prefix, &cfg)
	appErr := Apps(cfg.Apps, func(name string, app worker.App) {
		app.Name = name
		cfg.App = append(cfg.App, app)
	})
	return cfg, mistakes(err, appErr, cfg.Validate())
}

func mistakes(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configuration:\n%w", err)
	}
	return nil
}

// Gateway lists what [ReadGateway] reads.
func Gateway() []Variable {
	return append(Variables(Prefix, new(gateway.Config)), Variables(Prefix+"_APP_<NAME>", new(gateway.App))...)
}

// Worker lists what [ReadWorker] reads.
func Worker() []Variable {
	return append(Variables(Prefix, new(worker.Config)), Variables(Prefix+"_APP_<NAME>", new(worker.App))...)
}

// Flags handles the command line of a program that is configured by the environment
// alone. -h prints list to stdout and returns [flag.ErrHelp].
func Flags(program, about string, args []string, stdout io.Writer, list []Variable) error {
	set := flag.NewFlagSet(program, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	err := set.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = fmt.Fprintf(stdout, "%s\n\nIt is configured by environment variables. A value @FILE of a secret is read from that file.\n\n", about)
		Help(stdout, list)
	case err == nil && set.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q; everything is set by environment variables, see -h", set.Arg(0))
	}
	return err
}
