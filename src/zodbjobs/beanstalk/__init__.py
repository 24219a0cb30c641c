"""The beanstalk door: jobs for and from programs in any language, by the protocol of beanstalkd.

`protocol` knows the wire and nothing else; `store` applies commands to the
database; `gateway` knows the clients, and commits what they ask for together;
`server` is the Twisted side, `main` the command ``zodbjobs-beanstalkd``.
"""
